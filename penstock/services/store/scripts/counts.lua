-- counts: everything that is counted, at one instant.
local run = state()
if not run.lineage then return { 'unattached' } end
local sizes = {}
for _, name in ipairs({ 'returned', 'reserved', 'stored', 'taken', 'applied' }) do
  sizes[#sizes + 1] = redis.call('ZCARD', QUEUES[name])
end
return { 'ok', run.issued, sizes, run.committed, redis.call('HGETALL', DROPS), run.bytes, run.lineage, run.step,
  run.redelivered, redis.call('HGETALL', REFUSED), redis.call('HGETALL', CAUSES) }
