-- drain: reason. No reservation any more; everything outstanding is dropped.
local run = state()
if not run.lineage then return { 'unattached' } end
redis.call('HSET', META, 'draining', ARGV[1])
local dropped = 0
for _, name in ipairs({ 'returned', 'reserved', 'stored', 'taken' }) do
  local outstanding = members(name)
  drop(outstanding, name, ARGV[1])
  dropped = dropped + #outstanding
end
return { 'ok', dropped }
