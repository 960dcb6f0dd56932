-- release: index, fence, partial ('' for none). A released ticket is void, unlike one whose lease has merely ended.
local index = ARGV[1]
local from, mine = held(index, ARGV[2])
if not from then return { 'fenced' } end
if mine then
  carry(index, ARGV[3])
  redis.call('HDEL', entry(index), 'lapsed')
  move({ index }, from, 'returned')
  open(1)
elseif from ~= 'returned' then
  return { 'fenced' }
end
return { 'ok' }
