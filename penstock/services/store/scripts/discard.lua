-- discard: lineage, step, reason, then the indices. All are checked before any is dropped.
local lineage, step, reason = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local run = state()
if not run.lineage then return { 'unattached' } end
local other = replaced(run, lineage, step)
if other then return other end
local present, seen = {}, {}
for i = 4, #ARGV do
  local found = redis.call('HGET', entry(ARGV[i]), 'state')
  if found then -- else it ended before: a repetition
    if found ~= 'taken' or tonumber(redis.call('ZSCORE', QUEUES.taken, ARGV[i])) ~= step then
      return wrong('group ' .. ARGV[i] .. ' is ' .. found .. ', not taken for the step from '
        .. lineage .. '.' .. step)
    end
    if not seen[ARGV[i]] then present[#present + 1] = ARGV[i] end
    seen[ARGV[i]] = true
  end
end
drop(present, 'taken', reason)
return { 'ok' }
