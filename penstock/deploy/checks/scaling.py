"""Rules about what moves by itself while a run goes on: the number of workers, and the bound on the lag."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.deploy.checks.context import Context, all_rules, rule
from penstock.deploy.findings import Finding
from penstock.learner.config import AdaptiveLag


@rule("rollout", "staleness")
def a_synchronous_run_does_not_scale_itself(ctx: Context) -> Iterator[Finding]:
    if ctx.run_file.rollout.autoscale is not None and ctx.run_file.staleness.largest_lag == 0:
        yield ctx.error(
            "rollout.autoscale",
            "at staleness.max_lag 0 learner and workers take turns: both wait however many workers there are, and "
            "waiting says nothing",
            remedy="allow a lag of 1 or more, or set rollout.workers to a fixed number",
        )


@rule("rollout", "learner", "staleness")
def the_gate_admits_every_worker(ctx: Context) -> Iterator[Finding]:
    rollout = ctx.run_file.rollout
    admitted = (ctx.run_file.staleness.largest_lag + 1) * ctx.run_file.learner.groups_per_step
    most = {"rollout.workers": rollout.workers}
    if rollout.autoscale is not None:
        most["rollout.autoscale.max"] = rollout.autoscale.max
    for key, workers in most.items():
        if workers > admitted:
            yield ctx.warning(
                key,
                f"the gate admits at most (max_lag + 1) × groups_per_step = {admitted} groups at a time, so some of "
                f"the {workers} workers have nothing to do",
                remedy="fewer workers, or a larger max_lag or groups_per_step",
            )


@rule("staleness")
def a_bound_that_follows_can_move(ctx: Context) -> Iterator[Finding]:
    bound = ctx.run_file.staleness.max_lag
    if isinstance(bound, AdaptiveLag) and bound.min == bound.max:
        remedy = f"staleness.max_lag: {bound.min}, or another max"
        yield ctx.warning("staleness.max_lag", "min and max are the same: the bound cannot move", remedy=remedy)


@rule("staleness", "guards")
def guards_and_the_bound_that_follows_do_not_pull_both_ways(ctx: Context) -> Iterator[Finding]:
    if not isinstance(ctx.run_file.staleness.max_lag, AdaptiveLag):
        return
    for number, guard in enumerate(ctx.run_file.guards):
        if any(action.max_lag is not None for action in guard.do):
            yield ctx.warning(
                f"guards.{number}",
                "staleness.max_lag follows the effective sample size by itself; what a guard sets it to is left alone "
                "for staleness.max_lag.hold steps only",
                remedy="leave one of the two out",
            )


@rule("rollout")
def a_number_that_follows_can_move(ctx: Context) -> Iterator[Finding]:
    rollout = ctx.run_file.rollout
    if rollout.autoscale is not None and rollout.autoscale.min == rollout.autoscale.max:
        remedy = f"leave it out and set rollout.workers to {rollout.autoscale.max}"
        yield ctx.warning("rollout.autoscale", "min and max are the same: nothing is ever scaled", remedy=remedy)


RULES = all_rules(globals())
