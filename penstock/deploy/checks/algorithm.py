"""Rules about the algorithm: cells that contradict each other, and what they need of the rest of the run."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.deploy.checks.context import Context, all_rules, rule
from penstock.deploy.findings import Finding
from penstock.deploy.runfile import RunFile
from penstock.learner.algorithms.cells import OwnValue
from penstock.learner.algorithms.contradictions import contradictions
from penstock.learner.algorithms.judging import Sizes
from penstock.learner.algorithms.section import OPEN
from penstock.services import model_facts, models
from penstock.services.contracts import PenstockError


def sizes_of(run: RunFile) -> Sizes:
    """What of `run` matters to its algorithm."""
    return Sizes(
        group_size=run.rollout.group_size,
        groups_per_step=run.learner.groups_per_step,
        updates=run.learner.epochs * run.learner.mini_batches,
        max_tokens=run.rollout.sampling.max_tokens,
        steps=run.limits.steps,
    )


@rule()
def the_cells_fit_each_other(ctx: Context) -> Iterator[Finding]:
    # Needs no section to be right: what stands at an unknown key is not looked at.
    for found in contradictions(ctx.run_file.algorithm, sizes_of(ctx.run_file), ctx.unknown):
        say = ctx.error if found.level == "error" else ctx.warning
        yield say(found.key, found.problem, allowed=found.allowed, remedy=found.remedy)


@rule("algorithm")
def the_functions_of_own_cells_are_there(ctx: Context) -> Iterator[Finding]:
    for name in OPEN:
        cell = getattr(ctx.run_file.algorithm, name)
        if cell.is_own and (problem := cell.problem()):
            yield ctx.error(f"algorithm.{name}", f"{type(cell).__name__}: {problem}")


@rule("algorithm", "reward")
def a_reference_is_used(ctx: Context) -> Iterator[Finding]:
    reward = ctx.run_file.reward
    if reward is not None and reward.reference.model is not None and not ctx.run_file.algorithm.needs_reference:
        remedy = "set algorithm.kl.coefficient, or leave the reference out"
        yield ctx.warning("reward.reference.model", "algorithm.kl.coefficient is 0: it is never used", remedy=remedy)


@rule("algorithm", "learner")
def clip_bounds_are_of_use(ctx: Context) -> Iterator[Finding]:
    # Many run one update per step on purpose, with a row whose clip then does nothing; only a bound that someone wrote
    # is worth a word.
    if ctx.run_file.learner.epochs * ctx.run_file.learner.mini_batches > 1:
        return
    for name in ("clip_low", "clip_high"):
        key = f"algorithm.objective.{name}"
        if ctx.wrote(key):
            problem = "with one update per step the ratio is 1 and never clipped"
            yield ctx.warning(key, problem, remedy="learner.epochs or learner.mini_batches above 1, or leave it out")


@rule("algorithm", "model")
def the_value_model_is_there(ctx: Context) -> Iterator[Finding]:
    value = ctx.run_file.algorithm.value
    if isinstance(value, OwnValue) and value.path is not None:
        model = ctx.run_file.model.model_copy(update={"path": value.path, "tokenizer": ctx.run_file.model.path})
        found = [(key, text) for key, text in models.problems(model) if key == "path"]
        yield from ctx.within("algorithm.value", found)
        if not found and not isinstance(ctx.model, PenstockError):
            yield from _knows_the_tokens(ctx, value.path, ctx.model.vocab)


def _knows_the_tokens(ctx: Context, path: str, wanted: int) -> Iterator[Finding]:
    try:
        known = model_facts.describe(path).vocab
    except PenstockError as error:
        yield ctx.error("algorithm.value.path", str(error))
        return
    if known < wanted:
        problem = f"this model knows {known} tokens and the policy {wanted}"
        yield ctx.error("algorithm.value.path", problem, remedy="a model with the policy's tokenizer")


RULES = all_rules(globals())
