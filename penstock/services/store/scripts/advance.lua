-- advance: lineage, step. The groups taken for earlier steps have been used by the step that ends here.
local lineage, step = tonumber(ARGV[1]), tonumber(ARGV[2])
local run = state()
if not run.lineage then return { 'unattached' } end
local other = replaced(run, lineage, step)
if other then return other end
if step <= run.step then return { 'ok' } end -- a repetition
if step ~= run.step + 1 then
  return wrong('version ' .. lineage .. '.' .. step .. ' does not follow the published ' .. lineage .. '.' .. run.step)
end
move(redis.call('ZRANGEBYSCORE', QUEUES.taken, '-inf', '(' .. step), 'taken', 'applied', step)
redis.call('HSET', META, 'step', step)
open(run.groups_per_step)
return { 'ok' }
