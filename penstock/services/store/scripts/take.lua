-- take: lineage, step, want, lineage known to the client, common_step by lineage. Answers with indices; the client
-- reads the payloads that it does not have itself, since to pass them through here would copy each of them twice.
local lineage, step, want, known = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local common = cjson.decode(ARGV[5])

local run = state()
if not run.lineage then return { 'unattached' } end
if run.lineage ~= known then return { 'forks' } end
local other = replaced(run, lineage, step)
if other then return other end
if step < run.step or step > run.step + 1 then
  return wrong('a step from version ' .. lineage .. '.' .. step .. ' cannot take while ' .. run.lineage .. '.'
    .. run.step .. ' is published; only that version or the next one can')
end

local function stale(binding)
  local l, s = string.match(binding, '(%d+)%.(%d+)')
  -- a lineage whose fork was lost together with an earlier store is older than any bound
  return not common[l] or lag(step, common[l], tonumber(s)) > run.max_lag
end

-- Few versions bind the stored groups, so the groups are looked through only when one of those is too old.
local old, any, gone = {}, false, {}
for _, binding in ipairs(redis.call('HKEYS', BINDINGS)) do
  old[binding] = stale(binding)
  any = any or old[binding]
end
if any then
  for _, index in ipairs(members('stored')) do
    if old[redis.call('HGET', entry(index), 'binding')] then gone[#gone + 1] = index end
  end
  drop(gone, 'stored', 'stale')
end

local held_now = redis.call('ZCOUNT', QUEUES.taken, step, step)
if held_now < want then
  move(redis.call('ZRANGE', QUEUES.stored, 0, want - held_now - 1), 'stored', 'taken', step)
end

local mine = redis.call('ZRANGEBYSCORE', QUEUES.taken, step, step)
table.sort(mine, function(a, b) return tonumber(a) < tonumber(b) end)
skip_issued(run)
local waiting = redis.call('ZCARD', QUEUES.returned) + redis.call('ZCARD', QUEUES.reserved)
  + redis.call('ZCARD', QUEUES.stored)
local over = run.draining or (run.prompts >= 0 and run.cursor >= run.prompts)
local reply = { 'ok', #gone, (over and waiting == 0) and 1 or 0 }
for _, index in ipairs(mine) do reply[#reply + 1] = index end
return reply
