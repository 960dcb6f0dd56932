-- hold: 1 or 0. No new prompts while it is 1; what is outstanding goes on, and what was returned may be played again.
local run = state()
if not run.lineage then return { 'unattached' } end
if ARGV[1] == '1' then
  redis.call('HSET', META, 'held', 1)
else
  redis.call('HDEL', META, 'held')
end
return { 'ok' }
