-- refuse: index, fence, reason, cause. An entry that is gone was refused before, or ended in another way.
local index = ARGV[1]
local from, mine = held(index, ARGV[2])
if mine then
  drop({ index }, from, ARGV[3])
  redis.call('HINCRBY', REFUSED, ARGV[3], 1)
  redis.call('HSET', CAUSES, ARGV[3], ARGV[4])
elseif redis.call('EXISTS', entry(index)) == 1 then
  return { 'fenced' }
end
return { 'ok' }
