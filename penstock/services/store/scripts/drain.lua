-- drain: reason, lineage known to the client. No reservation any more; everything outstanding is dropped.
local run = state()
if not run.lineage then return { 'unattached' } end
if run.lineage ~= tonumber(ARGV[2]) then return { 'forks' } end -- said to a learner that has been replaced since
redis.call('HSET', META, 'draining', ARGV[1])
local dropped = 0
for _, name in ipairs({ 'returned', 'reserved', 'stored', 'taken' }) do
  local outstanding = members(name)
  drop(outstanding, name, ARGV[1])
  dropped = dropped + #outstanding
end
return { 'ok', dropped }
