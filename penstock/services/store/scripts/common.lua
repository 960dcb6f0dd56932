-- Prelude of every script: the names of the keys, the moves between states, the staleness arithmetic.
-- KEYS[1] is the run's prefix. All keys share its hash tag, so that a run lies in one cluster slot.
local prefix = KEYS[1]
local META = prefix .. 'meta' -- rules, counters, the published version
local DROPS = prefix .. 'drops' -- reason -> how many
local REFUSED = prefix .. 'refused' -- reason -> how many of the drops were a worker's
local CAUSES = prefix .. 'causes' -- the same reasons -> why the last one was
local AHEAD = prefix .. 'ahead' -- set of indices beyond the cursor that have been issued nevertheless, before a rewind
local FORKS = prefix .. 'forks' -- lineage -> the version it forked from
local ARRIVED = prefix .. 'arrived' -- holds something when a group was put since the learner waited last
local WAITING = prefix .. 'waiting' -- workers that got nothing and listen for room
local BINDINGS = prefix .. 'bindings' -- binding version -> how many stored groups have it
local SINCE = prefix .. 'since' -- sorted set of stored indices; score: unix seconds at which each became stored
local QUEUES = { -- state -> sorted set of indices; committed and dropped are only counted
  returned = prefix .. 'returned', -- score: index
  reserved = prefix .. 'reserved', -- score: end of the lease, unix seconds
  stored = prefix .. 'stored', -- score: index; below 0 what is delivered again, see `store_again`
  taken = prefix .. 'taken', -- score: the step it was taken for
  applied = prefix .. 'applied', -- score: the step that used it
}
local WORKERS, FACTS, PINS = prefix .. 'workers', prefix .. 'facts', prefix .. 'pins'

local function entry(index) return prefix .. 'entry:' .. index end

local function clock()
  local now = redis.call('TIME')
  return tonumber(now[1]) + tonumber(now[2]) / 1e6
end

-- The run's numbers in one read; fields that were never written are nil.
local function state()
  local names = {
    'lineage', 'step', 'max_lag', 'groups_per_step', 'prompts', 'max_bytes', 'issued', 'committed', 'bytes',
    'redelivered', 'commit_lineage', 'commit_step',
  }
  local found, run = redis.call('HMGET', META, unpack(names)), {}
  for i, name in ipairs(names) do run[name] = tonumber(found[i]) end
  run.cursor = run.issued and run.issued - redis.call('SCARD', AHEAD)
  run.draining = redis.call('HEXISTS', META, 'draining') == 1
  run.held = redis.call('HEXISTS', META, 'held') == 1
  return run
end

-- Distance of two versions in the tree: staleness.lag. `common` is staleness.common_step, sent by the client.
local function lag(now, common, step)
  local ancestor = math.min(common, step, now)
  return (now - ancestor) + (step - ancestor)
end

local function members(name) return redis.call('ZRANGE', QUEUES[name], 0, -1) end

local function outstanding()
  local count = 0
  for _, name in ipairs({ 'returned', 'reserved', 'stored', 'taken' }) do
    count = count + redis.call('ZCARD', QUEUES[name])
  end
  return count
end

-- Why no new prompt may start while `running` groups are outstanding, at a worker that lags by `behind`.
local function closed(run, running, behind)
  if run.draining then return 'draining' end
  if run.prompts >= 0 and run.cursor >= run.prompts then return 'data_end' end
  if run.held then return 'held' end
  if running >= math.max(0, run.max_lag + 1 - behind) * run.groups_per_step then return 'lag' end
  if run.bytes > run.max_bytes then return 'memory' end
  return ''
end

-- After a rewind the cursor passes over prompts that were issued before it, whatever has become of them.
local function skip_issued(run)
  while redis.call('SISMEMBER', AHEAD, run.cursor) == 1 do run.cursor = run.cursor + 1 end
end

-- A command on a key with many arguments, in pieces that fit on Lua's stack.
local function with_many(command, key, list)
  for i = 1, #list, 4000 do redis.call(command, key, unpack(list, i, math.min(i + 3999, #list))) end
end

-- The moves below take lists: one command for many groups costs the server a fraction of a command for each.
local function count_bindings(indices, by)
  local counts = {}
  for _, index in ipairs(indices) do
    local binding = redis.call('HGET', entry(index), 'binding')
    counts[binding] = (counts[binding] or 0) + by
  end
  for binding, change in pairs(counts) do
    if redis.call('HINCRBY', BINDINGS, binding, change) == 0 then redis.call('HDEL', BINDINGS, binding) end
  end
end

local function leave(indices, from)
  with_many('ZREM', QUEUES[from], indices)
  if from == 'stored' then
    count_bindings(indices, -1)
    with_many('ZREM', SINCE, indices)
  end
end

-- Into the queue of a state that the entries have already. Without `score` each group's is its index.
local function queue(indices, to, score)
  local scored, since = {}, {}
  local now = to == 'stored' and clock()
  for i, index in ipairs(indices) do
    scored[2 * i - 1], scored[2 * i] = score or index, index
    if now then since[2 * i - 1], since[2 * i] = now, index end
  end
  with_many('ZADD', QUEUES[to], scored)
  if now then
    count_bindings(indices, 1)
    with_many('ZADD', SINCE, since)
  end
end

local function enter(indices, to, score)
  for _, index in ipairs(indices) do redis.call('HSET', entry(index), 'state', to) end
  queue(indices, to, score)
end

local function move(indices, from, to, score)
  leave(indices, from)
  enter(indices, to, score)
end

-- What a lost learner had used goes to the next one before anything else and in the same portions, so that its steps can
-- be repeated to the bit: by the step, and within a step by index. `used` has pairs of step and index.
local function store_again(used)
  table.sort(used, function(a, b) return a[1] < b[1] or (a[1] == b[1] and tonumber(a[2]) < tonumber(b[2])) end)
  local first = redis.call('ZRANGE', QUEUES.stored, 0, 0, 'WITHSCORES')
  local before = math.min(0, tonumber(first[2] or 0)) - #used - 1
  for i, group in ipairs(used) do enter({ group[2] }, 'stored', before + i) end
end

-- Replace what an entry carries (a partial or a whole group); '' for nothing.
local function carry(index, payload)
  local change = #payload - redis.call('HSTRLEN', entry(index), 'payload')
  if change ~= 0 then redis.call('HINCRBY', META, 'bytes', change) end
  if payload == '' then
    redis.call('HDEL', entry(index), 'payload')
  else
    redis.call('HSET', entry(index), 'payload', payload)
  end
end

-- There is room for so many more: tell as many of the workers that wait, and not all of a thousand.
local function word_for(worker) return prefix .. 'opened:' .. worker end

local function open(places)
  if places == 0 then return end
  for _, worker in ipairs(redis.call('SPOP', WAITING, places)) do
    redis.call('RPUSH', word_for(worker), '1') -- the only one: `reserve` takes away what was not heard
    redis.call('EXPIRE', word_for(worker), 60)
  end
end

local function open_to_all() open(redis.call('SCARD', WAITING)) end

-- End entries; no key of them stays.
local function forget(indices, from)
  leave(indices, from)
  local size, keys = 0, {}
  for i, index in ipairs(indices) do
    keys[i] = entry(index)
    size = size + redis.call('HSTRLEN', keys[i], 'payload')
  end
  for i = 1, #keys, 4000 do redis.call('UNLINK', unpack(keys, i, math.min(i + 3999, #keys))) end
  if size > 0 then redis.call('HINCRBY', META, 'bytes', -size) end
end

local function drop(indices, from, reason)
  forget(indices, from)
  if #indices > 0 then redis.call('HINCRBY', DROPS, reason, #indices) end
  open(#indices)
end

-- reserved -> returned. The old ticket stays good until someone else gets one.
local function lapse(indices)
  for _, index in ipairs(indices) do redis.call('HSET', entry(index), 'lapsed', 1) end
  move(indices, 'reserved', 'returned')
  open(#indices)
  return #indices
end

-- The same for every lease that has ended.
local function expire() return lapse(redis.call('ZRANGEBYSCORE', QUEUES.reserved, '-inf', clock())) end

-- The present state of an entry for the holder of `fence`: nil when it is not (or no longer) theirs to change.
local function held(index, fence)
  local found = redis.call('HMGET', entry(index), 'state', 'fence', 'lapsed')
  if found[2] ~= fence then return nil end
  return found[1], found[1] == 'reserved' or (found[1] == 'returned' and found[3] == '1')
end

local function wrong(text) return { 'wrong', text } end

-- A learner of another lineage has been replaced; nothing it says may change the ledger.
local function replaced(run, lineage, step)
  if run.lineage == lineage then return nil end
  return wrong('the learner that asks is at version ' .. lineage .. '.' .. step .. ', the store is at '
    .. run.lineage .. '.' .. run.step .. ': another learner has taken over')
end
