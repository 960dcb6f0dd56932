-- put: index, fence, payload, binding version.
local index, binding = ARGV[1], ARGV[4]
local from, mine = held(index, ARGV[2])
if not from or (from == 'returned' and not mine) then return { 'fenced' } end
if mine then -- else it is stored already, or further: a repetition
  carry(index, ARGV[3])
  redis.call('HSET', entry(index), 'binding', binding)
  redis.call('HDEL', entry(index), 'lapsed')
  move(index, from, 'stored', index)
end
return { 'ok' }
