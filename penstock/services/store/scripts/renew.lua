-- renew: lease, then index and fence of each ticket. Answers with the indices that are no longer the caller's.
local ends, lost = clock() + tonumber(ARGV[1]), { 'ok' }
for i = 2, #ARGV, 2 do
  local index, from, mine = ARGV[i], held(ARGV[i], ARGV[i + 1])
  if mine then
    move({ index }, from, 'reserved', ends)
    redis.call('HDEL', entry(index), 'lapsed')
  else
    lost[#lost + 1] = index
  end
end
return lost
