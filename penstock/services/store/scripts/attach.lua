-- attach / amend: max_lag, groups_per_step, prompts (-1 without end), max_bytes, amend (0 or 1).
local names = { 'max_lag', 'groups_per_step', 'prompts', 'max_bytes' }
if ARGV[5] == '0' then
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
return { 'ok' }
