-- hold: 1 or 0, lineage known to the client. No new prompts while it is 1; what is outstanding goes on, and what was
-- returned may be played again.
local run = state()
if not run.lineage then return { 'unattached' } end
if run.lineage ~= tonumber(ARGV[2]) then return { 'forks' } end -- said to a learner that has been replaced since
if ARGV[1] == '1' then
  redis.call('HSET', META, 'held', 1)
else
  redis.call('HDEL', META, 'held')
  open_to_all()
end
return { 'ok' }
