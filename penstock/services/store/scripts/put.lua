-- put: index, fence, payload, binding version; again for every further group. Answers with the indices whose fencing
-- token is no longer current.
local fenced, left, stored, size = { 'ok' }, { reserved = {}, returned = {} }, {}, 0
for i = 1, #ARGV, 4 do
  local index, payload = ARGV[i], ARGV[i + 2]
  local from, mine = held(index, ARGV[i + 1])
  if not from or (from == 'returned' and not mine) then
    fenced[#fenced + 1] = index
  elseif mine then -- else it is stored already, or further: a repetition
    size = size + #payload - redis.call('HSTRLEN', entry(index), 'payload')
    redis.call('HSET', entry(index), 'payload', payload, 'binding', ARGV[i + 3], 'state', 'stored')
    if from == 'returned' then redis.call('HDEL', entry(index), 'lapsed') end
    table.insert(left[from], index)
    stored[#stored + 1] = index
  end
end
for from, indices in pairs(left) do leave(indices, from) end
queue(stored, 'stored')
if #stored > 0 and redis.call('EXISTS', ARRIVED) == 0 then redis.call('RPUSH', ARRIVED, '1') end
if size ~= 0 then redis.call('HINCRBY', META, 'bytes', size) end
return fenced
