"""Rules about trackers: their packages, and where they are. Nobody is asked over the network."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.deploy.checks.context import Context, all_rules, rule
from penstock.deploy.findings import Finding
from penstock.services.tracking import config


@rule("tracking", stages=("train", "sft"))
def the_trackers_can_be_had(ctx: Context) -> Iterator[Finding]:
    for key, problem, remedy in config.problems(ctx.run_file.tracking):
        yield ctx.error(f"tracking.{key}", problem, remedy=remedy)
    for key, problem, remedy in config.doubts(ctx.run_file.tracking):
        yield ctx.warning(f"tracking.{key}", problem, remedy=remedy)


RULES = all_rules(globals())
