"""Rules about the Ray cluster that a run joins, and about being a job on it. Starts nothing there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from penstock.deploy import job, ray_address
from penstock.deploy.checks.context import STAGES, Context, all_rules, rule
from penstock.deploy.findings import Finding


@rule("placement", stages=("train", "sft"))
def the_cluster_answers(ctx: Context) -> Iterator[Finding]:
    address = ray_address.given(ctx.run_file.placement.ray_address)
    if address is None:
        return
    try:
        ray_address.require_for_driver(address)
    except ray_address.ClusterAway as error:
        yield ctx.error("placement.ray_address", str(error))


@rule(stages=STAGES)
def a_job_keeps_its_runs(ctx: Context) -> Iterator[Finding]:
    copy = job.copy_root(Path.cwd())
    if copy is not None and not (ctx.wrote("runs_dir") and Path(str(ctx.source.values["runs_dir"])).is_absolute()):
        yield ctx.note(
            "runs_dir",
            f"this is a job, and {copy} is Ray's copy of its working directory, which does not last: the run is kept "
            f"in {ctx.run_file.runs_dir}; for another place give an absolute path",
        )


@rule("model", "data", "evaluation", stages=STAGES)
def a_job_has_what_it_reads(ctx: Context) -> Iterator[Finding]:
    run = ctx.run_file
    read = {"model.path": run.model.path}
    for key, section in (("data", run.data), ("evaluation.data", run.evaluation.data)):
        if section is not None:
            read |= {f"{key}.sources.{name}.path": str(source.path) for name, source in section.sources.items()}
    for key, path in read.items():
        copy = job.copy_root(Path(path))
        if copy is not None and not Path(path).exists():
            ignored = "of the working directory Ray leaves out what .gitignore and .rayignore name"
            yield ctx.note(key, f"{ignored}, and so this may be missing: {Path(path).relative_to(copy)}")


RULES = all_rules(globals())
