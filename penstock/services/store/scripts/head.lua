-- head: the published version, the forks, and why a worker at that version would get no new prompt.
local run = state()
if not run.lineage then return { 'unattached' } end
skip_issued(run)
return { 'ok', run.lineage, run.step, redis.call('HGETALL', FORKS), closed(run, outstanding(), 0) }
