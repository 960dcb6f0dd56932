-- commit: lineage, step. Answers with how many groups this call committed.
local lineage, step = tonumber(ARGV[1]), tonumber(ARGV[2])
local run = state()
if not run.lineage then return { 'unattached' } end
local other = replaced(run, lineage, step)
if other then return other end
if step > run.step then
  return wrong('version ' .. lineage .. '.' .. step .. ' is not published yet (' .. lineage .. '.' .. run.step
    .. ' is): advance first')
end
local used = redis.call('ZRANGEBYSCORE', QUEUES.applied, '-inf', step)
forget(used, 'applied')
open(#used)
if #used > 0 then redis.call('HINCRBY', META, 'committed', #used) end
if run.commit_lineage ~= lineage or run.commit_step < step then
  redis.call('HSET', META, 'commit_lineage', lineage, 'commit_step', step)
end
return { 'ok', #used }
