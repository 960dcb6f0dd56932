-- pin / unpin / pinned: with a pin and seconds it pins, with a pin alone it unpins, without either it reads.
local now = clock()
redis.call('ZREMRANGEBYSCORE', PINS, '-inf', now)
if #ARGV == 2 then
  redis.call('ZADD', PINS, now + tonumber(ARGV[2]), ARGV[1])
elseif #ARGV == 1 then
  redis.call('ZREM', PINS, ARGV[1])
end
return { 'ok', redis.call('ZRANGE', PINS, 0, -1) }
