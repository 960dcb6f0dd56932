"""Rules about guards: conditions on what the run records, and actions that can be done and do not fight each other."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

from penstock.deploy.checks.context import Context, all_rules, rule
from penstock.deploy.checks.numbers import known_metric
from penstock.deploy.findings import Finding
from penstock.deploy.guards.config import ActionSection, GuardSection
from penstock.deploy.guards.presets import written_at
from penstock.deploy.guards.webhook import address_of
from penstock.learner.dials import KL, MAX_LAG, Dials, names_of
from penstock.services.control import Refused

MOVES_WHILE_CLOSED = ("ledger/", "off_policy/", "rollout_corr/", "kl/offpolicy", "kl/staleness")
"""How the names of metrics begin that a closed gate brings back: what is stored is used up, and what is trained on
becomes fresher. Of any other the gate would stay closed until its time is over, to no end."""


@rule("guards", "evaluation", "algorithm", "audit", "reward", "rollout")
def guards_watch_what_is_recorded(ctx: Context) -> Iterator[Finding]:
    for place, guard in _guards(ctx):
        key, metric = f"{place}.when", guard.condition.metric
        findings = list(known_metric(ctx, key, metric))
        why = "" if findings else not_recorded(ctx, metric)
        if why and not guard.optional:
            yield ctx.error(key, f"{metric} is not recorded in this run: {why}")
        yield from findings


def not_recorded(ctx: Context, metric: str) -> str:
    """Why a metric that exists will not be there; empty where it will."""
    run = ctx.run_file
    if metric.startswith("kl/reference") and not run.algorithm.needs_reference:
        return "algorithm.kl.coefficient is 0, and so there is no reference model"
    if metric.startswith(("kl/staleness", "kl/mismatch", "kl/update_audited", "audit/")) and run.audit.every == 0:
        return "it is measured by audits, and audit.every is 0"
    if metric.startswith("critic/") and run.algorithm.value.kind == "none":
        return f"the algorithm {run.algorithm.name} has no values"
    if metric.startswith("reward/part/") and run.reward is not None:
        part = metric.removeprefix("reward/part/")
        if part not in run.reward.rules:
            return f"there is no rule {part!r}; there are: {', '.join(run.reward.rules)}"
    return ""


@rule("guards", "algorithm", "learner", "staleness")
def guards_turn_what_can_be_turned(ctx: Context) -> Iterator[Finding]:
    dials = Dials(ctx.run_file.algorithm, ctx.run_file.learner, ctx.run_file.staleness.first_lag)
    for key, guard, action in _actions(ctx):
        word = action.scale or action.set
        if word is None or (guard.optional and not_recorded(ctx, guard.condition.metric)):
            continue
        below = f"{key}.{'scale' if action.scale else 'set'}"
        try:
            names = dials.find(word)
            if MAX_LAG in names:
                yield ctx.error(below, "the bound on the lag has an action of its own: max_lag: tighten, or open")
                continue
            for name in names:
                for end in (action.to, action.at_least, action.at_most):
                    if end is not None:
                        dials.check(name, end)
                if action.scale is not None and dials.start[name] == 0:
                    raise Refused(f"{name} begins at 0, and no factor moves it from there: set it first, or use set")
        except Refused as error:
            yield ctx.error(below, str(error))
            continue
        if KL in names and ctx.run_file.algorithm.kl.controller.kind != "fixed":
            yield ctx.warning(below, "algorithm.kl.controller moves it too, and may take back what the guard does")


@rule("guards")
def a_gate_is_closed_only_for_what_moves_meanwhile(ctx: Context) -> Iterator[Finding]:
    for key, guard, action in _actions(ctx):
        metric = guard.condition.metric
        if action.gate is not None and not metric.startswith(MOVES_WHILE_CLOSED):
            yield ctx.error(
                f"{key}.gate",
                f"a closed gate does not bring {metric} back: it would stay closed for its {action.minutes:g} minutes",
                allowed="metrics that begin with " + ", ".join(MOVES_WHILE_CLOSED),
            )


@rule("guards")
def actions_do_not_contradict_each_other(ctx: Context) -> Iterator[Finding]:
    guards = list(_guards(ctx))
    for key, guard in guards:
        for (place, first), (_, second) in itertools.combinations(enumerate(guard.do), 2):
            if why := contradiction(first, second):
                yield ctx.error(f"{key}.do.{place}", f"contradicts {second} of the same guard: {why}")
    for (key, one), (beside, other) in itertools.combinations(guards, 2):
        if one.condition.metric != other.condition.metric or not one.condition.overlaps(other.condition):
            continue
        for mine, theirs in itertools.product(one.do, other.do):
            if mine.target and (why := contradiction(mine, theirs)):
                both = f"{one.when!r} of {key} and {other.when!r} of {beside} can hold together, and then {why}"
                for told in (key, beside):  # whoever reads of one of them finds the other
                    yield ctx.error(f"{told}.do", both)


def contradiction(one: ActionSection, other: ActionSection) -> str:
    """Why two actions cannot both be meant; empty where they can."""
    if one.target and set(names_of(one.target)) & set(names_of(other.target)):
        if one.direction * other.direction < 0:
            return f"one moves {one.target} up, the other down"
        if one.set is not None and other.set is not None and one.to != other.to:
            return f"one sets {one.target} to {one.to:g}, the other to {other.to:g}"
        if (one.set is None) != (other.set is None):
            return f"one sets {one.target}, the other multiplies it"
    ends = {one.then, other.then}
    if "stop" in ends and len(ends & {"pause", "roll_back"}) == 1:
        return f"after stop there is no {next(iter(ends - {'stop'}))}"
    if ends == {"pause", "roll_back"}:
        return "one stands still and asks, the other goes back without asking"
    return ""


@rule("guards", "checkpoints")
def there_is_a_checkpoint_to_go_back_to(ctx: Context) -> Iterator[Finding]:
    keep = ctx.run_file.checkpoints
    for key, guard in _guards(ctx):
        reach = keep.every * (keep.keep_last - 1)
        if guard.rolls_back and reach < guard.needed:
            yield ctx.warning(
                f"{key}.do",
                f"the condition holds for {guard.needed} steps before it is acted on, and the oldest checkpoint may be "
                f"only {reach} steps old: none would be from before",
                remedy="raise checkpoints.keep_last or checkpoints.every",
            )


_SECRET_ADDRESS = re.compile(
    r"//hooks\.slack\.com/|//discord(app)?\.com/api/webhooks/|\.webhook\.office\.com/|//chat\.googleapis\.com/|"
    r"//api\.telegram\.org/bot"
)
"""Services whose addresses are passwords."""


@rule("guards")
def addresses_of_webhooks_are_there(ctx: Context) -> Iterator[Finding]:
    for key, _, action in _actions(ctx):
        if action.webhook is None:
            continue
        name, address = action.webhook[1:], address_of(action.webhook)
        if not address:
            yield ctx.error(f"{key}.webhook", f"the variable {name} is not set here", remedy=f"export {name}=…")
        elif urlsplit(address).scheme not in ("http", "https"):
            yield ctx.error(f"{key}.webhook", f"the variable {name} holds no address of http or https")
        elif not action.webhook.startswith("$") and _SECRET_ADDRESS.search(address):
            problem = "whoever knows an address of this kind may use it, and config.yaml and logs repeat it"
            remedy = "put it into an environment variable, and write $NAME here"
            yield replace(ctx.error(f"{key}.webhook", problem, remedy=remedy), found="***")


def _guards(ctx: Context) -> Iterator[tuple[str, GuardSection]]:
    """Every guard, with its key in the run file."""
    written = ctx.written("guards")
    for number, guard in enumerate(ctx.run_file.guards):
        yield written_at(written, number), guard


def _actions(ctx: Context) -> Iterator[tuple[str, GuardSection, ActionSection]]:
    """Every action, with its key in the run file; one that is no list has none of its own."""
    for key, guard in _guards(ctx):
        listed = isinstance(ctx.written(f"{key}.do"), (list, tuple))
        for place, action in enumerate(guard.do):
            yield f"{key}.do.{place}" if listed else f"{key}.do", guard, action


@rule("guards")
def guards_have_names_of_their_own(ctx: Context) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for key, guard in _guards(ctx):
        if guard.name and guard.name in seen:
            problem = f"{seen[guard.name]} is called {guard.name!r} too, and guards are counted by their names"
            yield ctx.error(f"{key}.name" if "." in key else key, problem, remedy="name one of them otherwise")
        seen.setdefault(guard.name, key)


RULES = all_rules(globals())
