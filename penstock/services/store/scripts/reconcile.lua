-- reconcile: request, checkpoint's lineage and step, lineage known to the client (-1: none), issued, the lineage
-- to open, common_step of the checkpoint by lineage, forks by lineage, memo or ''.
local request, lineage, step, known = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local issued, opened = tonumber(ARGV[5]), tonumber(ARGV[6])
local common, forks = cjson.decode(ARGV[7]), cjson.decode(ARGV[8])
local memo = ARGV[9] ~= '' and cjson.decode(ARGV[9]) or nil

local last = redis.call('HMGET', META, 'reconcile', 'reconciled_lineage', 'reconciled_step')
if last[1] == request then return { 'ok', last[2], last[3] } end
local run = state()
if not run.max_lag then return wrong('attach(rules) must come before reconcile') end
if (run.lineage or -1) ~= known then return { 'forks' } end

local function set(...) redis.call('HSET', META, ...) end

local function settle(at_lineage, at_step)
  set('lineage', at_lineage, 'step', at_step, 'reconcile', request, 'reconciled_lineage', at_lineage,
    'reconciled_step', at_step)
  redis.call('HDEL', META, 'draining', 'held')
  return { 'ok', at_lineage, at_step }
end

local function recount(known_drops)
  redis.call('DEL', DROPS)
  for reason, count in pairs(known_drops) do redis.call('HSET', DROPS, reason, count) end
end

-- The cursor stands where the checkpoint's did, and will pass over what had been issued beyond it.
local function put_ahead(later)
  redis.call('DEL', AHEAD)
  for _, index in ipairs(memo.ahead) do redis.call('SADD', AHEAD, index) end
  for _, index in ipairs(later) do redis.call('SADD', AHEAD, index) end
end

-- The checkpoint's view replaces the store's: it is older than the last commit, or the store has not gone that way
-- (it lost its last writes, or stands on another branch).
local function rebase()
  local missing, later = {}, {}
  local known_ahead, cursor = {}, memo.issued - #memo.ahead
  for _, index in ipairs(memo.ahead) do known_ahead[index] = true end
  for _, index in ipairs(memo.outstanding) do missing[tostring(index)] = true end
  for name, _ in pairs(QUEUES) do
    for _, index in ipairs(members(name)) do
      if tonumber(index) >= cursor and not known_ahead[tonumber(index)] then
        later[#later + 1] = index
      elseif missing[index] then
        missing[index] = nil
      else
        forget({ index }, name) -- the checkpoint has counted it as committed or dropped
      end
    end
  end
  for index, _ in pairs(missing) do
    redis.call('HSET', entry(index), 'fence', 0)
    enter({ index }, 'returned')
  end
  recount(memo.dropped)
  set('committed', memo.committed, 'issued', memo.issued + #later)
  put_ahead(later)
end

if not run.lineage then
  set('committed', 0, 'bytes', 0, 'redelivered', 0, 'issued', issued)
  if lineage == 0 and step == 0 and issued == 0 then return settle(0, 0) end
  local lost = issued -- a checkpoint without its store: what the store alone knew is lost
  if memo then
    recount(memo.dropped)
    put_ahead({})
    set('committed', memo.committed)
    lost = lost - memo.committed
    for _, count in pairs(memo.dropped) do lost = lost - count end
  end
  if lost > 0 then redis.call('HINCRBY', DROPS, 'store_lost', lost) end
else
  local ours = common[tostring(run.lineage)]
  local again = {}
  for _, index in ipairs(members('taken')) do
    again[#again + 1] = { redis.call('ZSCORE', QUEUES.taken, index) + 1, index }
    leave({ index }, 'taken')
  end
  for _, index in ipairs(members('applied')) do
    local used_by = tonumber(redis.call('ZSCORE', QUEUES.applied, index))
    if used_by <= ours then
      forget({ index }, 'applied')
      redis.call('HINCRBY', META, 'committed', 1)
    else
      leave({ index }, 'applied')
      again[#again + 1] = { used_by, index }
    end
  end
  store_again(again)
  local rolled_back = run.commit_step and (common[tostring(run.commit_lineage)] or -1) < run.commit_step
  local not_ours = math.min(ours, run.step) < step -- the checkpoint is no ancestor of what is published
  if memo and (rolled_back or not_ours) then rebase() end
end
for other, version in pairs(forks) do redis.call('HSET', FORKS, other, version) end
redis.call('HSET', FORKS, opened, lineage .. '.' .. step)
set('commit_lineage', lineage, 'commit_step', step)
open_to_all()
return settle(opened, step)
