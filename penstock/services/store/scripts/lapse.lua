-- lapse: worker. reserved -> returned for every lease that is held under this name, or under any when it is empty.
local gone = {}
for _, index in ipairs(members('reserved')) do
  if ARGV[1] == '' or redis.call('HGET', entry(index), 'holder') == ARGV[1] then gone[#gone + 1] = index end
end
redis.call('SREM', WAITING, ARGV[1])
return { 'ok', lapse(gone) }
