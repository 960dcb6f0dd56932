-- counts: everything that is counted, at one instant.
local run = state()
if not run.lineage then return { 'unattached' } end
local sizes = {}
for _, name in ipairs({ 'returned', 'reserved', 'stored', 'taken', 'applied' }) do
  sizes[#sizes + 1] = redis.call('ZCARD', QUEUES[name])
end
local oldest = redis.call('ZRANGE', SINCE, 0, 0, 'WITHSCORES')
local age = oldest[2] and math.max(0, clock() - tonumber(oldest[2])) or 0
return { 'ok', run.issued, sizes, run.committed, redis.call('HGETALL', DROPS), run.bytes, run.lineage, run.step,
  run.redelivered, redis.call('HGETALL', REFUSED), redis.call('HGETALL', CAUSES), tostring(age) }
