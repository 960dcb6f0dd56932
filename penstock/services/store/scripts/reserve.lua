-- reserve: worker, request, want, lease, the worker's lineage and step, common_step, lineage known to the client, 1
-- where it listens for room when there is none.
local worker, request, want, lease = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local step, common, known = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local REPLY = prefix .. 'reply:' .. worker

local function answer(lineage, published, why, expires, tickets)
  local reply = { 'ok', lineage, published, why, expires }
  for index, fence in string.gmatch(tickets, '(%d+):(%d+)') do
    local _, mine = held(index, fence)
    reply[#reply + 1] = index
    reply[#reply + 1] = fence
    reply[#reply + 1] = mine == true and redis.call('HGET', entry(index), 'payload')
  end
  return reply
end

local last = redis.call('HMGET', REPLY, 'request', 'lineage', 'step', 'why', 'expires', 'tickets')
if last[1] == request then return answer(last[2], last[3], last[4], last[5], last[6]) end

local run = state()
if not run.lineage then return { 'unattached' } end
if run.lineage ~= known then return { 'forks' } end

expire()
local expires = string.format('%.6f', clock() + lease)
local fence = tonumber(redis.call('HGET', META, 'fence') or '0')
local tickets, granted = {}, {}

local function grant(index)
  fence = fence + 1
  tickets[#tickets + 1] = index .. ':' .. fence
  granted[#granted + 1] = index
  redis.call('HSET', entry(index), 'fence', fence, 'state', 'reserved', 'holder', worker)
end

local behind, why = lag(run.step, common, step), ''
if run.draining then
  why = 'draining'
elseif behind > run.max_lag then
  why = 'lag'
else
  local again = redis.call('ZRANGE', QUEUES.returned, 0, want - 1)
  leave(again, 'returned')
  for _, index in ipairs(again) do
    redis.call('HDEL', entry(index), 'lapsed')
    grant(index)
  end
  if #again > 0 then redis.call('HINCRBY', META, 'redelivered', #again) end
  local running = outstanding() + #again
  while #tickets < want do
    skip_issued(run)
    why = closed(run, running, behind)
    if why ~= '' then break end
    grant(run.cursor)
    run.cursor, running = run.cursor + 1, running + 1
  end
  queue(granted, 'reserved', expires)
  local new = #tickets - #again
  redis.call('HSET', META, 'fence', fence)
  redis.call('HINCRBY', META, 'issued', new)
  for _, index in ipairs(redis.call('SMEMBERS', AHEAD)) do
    if tonumber(index) < run.cursor then redis.call('SREM', AHEAD, index) end
  end
end

redis.call('DEL', word_for(worker)) -- what it was told before is answered here
redis.call(#tickets == 0 and ARGV[9] == '1' and 'SADD' or 'SREM', WAITING, worker)
-- The last answer is kept for a repetition, one per worker, and not for ever.
local tokens = table.concat(tickets, ',')
redis.call('HSET', REPLY, 'request', request, 'lineage', run.lineage, 'step', run.step, 'why', why,
  'expires', expires, 'tickets', tokens)
redis.call('EXPIRE', REPLY, 300)
return answer(run.lineage, run.step, why, expires, tokens)
