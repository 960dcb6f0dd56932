-- memo: lineage, step. The ledger as the checkpoint of this version shall remember it.
local lineage, step = tonumber(ARGV[1]), tonumber(ARGV[2])
local run = state()
if not run.lineage then return { 'unattached' } end
local other = replaced(run, lineage, step)
if other then return other end
if step > run.step then
  return wrong('version ' .. lineage .. '.' .. step .. ' is not published yet: advance first')
end
if run.commit_lineage == lineage and step < run.commit_step then
  return wrong('version ' .. lineage .. '.' .. step .. ' is older than the last commit, ' .. lineage .. '.'
    .. run.commit_step .. ': what was committed since is no longer told apart')
end
local open = redis.call('ZRANGEBYSCORE', QUEUES.applied, '(' .. step, '+inf')
for _, name in ipairs({ 'returned', 'reserved', 'stored', 'taken' }) do
  for _, index in ipairs(members(name)) do open[#open + 1] = index end
end
skip_issued(run)
local ahead = {}
for _, index in ipairs(redis.call('SMEMBERS', AHEAD)) do
  if tonumber(index) > run.cursor then ahead[#ahead + 1] = index end
end
local committed = run.committed + redis.call('ZCOUNT', QUEUES.applied, '-inf', step)
return { 'ok', run.issued, committed, redis.call('HGETALL', DROPS), open, redis.call('HGETALL', FORKS), ahead }
