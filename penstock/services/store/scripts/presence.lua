-- announce / workers: with ARGV worker, facts, seconds it writes; without it reads. Both forget who fell silent.
local now = clock()
for _, name in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', now)) do
  redis.call('ZREM', WORKERS, name)
  redis.call('HDEL', FACTS, name)
end
if #ARGV == 0 then return { 'ok', redis.call('HGETALL', FACTS) } end
redis.call('ZADD', WORKERS, now + tonumber(ARGV[3]), ARGV[1])
redis.call('HSET', FACTS, ARGV[1], ARGV[2])
return { 'ok' }
