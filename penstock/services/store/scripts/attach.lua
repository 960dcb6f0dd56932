-- attach / amend: max_lag, groups_per_step, prompts (-1 without end), max_bytes; for amend the lineage known to the
-- client too, -1 where there is none.
local names = { 'max_lag', 'groups_per_step', 'prompts', 'max_bytes' }
if ARGV[5] then
  if (state().lineage or -1) ~= tonumber(ARGV[5]) then return { 'forks' } end -- said to a run that has begun anew since
else
  local found = redis.call('HMGET', META, unpack(names))
  if found[1] then
    for i, name in ipairs(names) do
      if found[i] ~= ARGV[i] then
        return wrong('this run was attached with ' .. name .. '=' .. found[i] .. ', now it is ' .. ARGV[i]
          .. '; amend(rules) changes the rules of a run')
      end
    end
    return { 'ok' }
  end
end
for i, name in ipairs(names) do redis.call('HSET', META, name, ARGV[i]) end
open_to_all()
return { 'ok' }
