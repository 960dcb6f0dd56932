-- drain: reason. No reservation any more; everything outstanding is dropped.
local run = state()
if not run.lineage then return { 'unattached' } end
redis.call('HSET', META, 'draining', ARGV[1])
local dropped = 0
for _, name in ipairs({ 'returned', 'reserved', 'stored', 'taken' }) do
  for _, index in ipairs(members(name)) do
    drop(index, name, ARGV[1])
    dropped = dropped + 1
  end
end
return { 'ok', dropped }
