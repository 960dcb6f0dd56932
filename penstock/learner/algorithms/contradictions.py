"""Cells that do not fit each other, or the sizes of the run: found before anything starts, all at once.

Nothing here knows a row: cells say of themselves what they need (`scope`, `needs_shift`, `ratio`, `weighs`, …), so
that rows and cells of the user's own are checked like Penstock's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from penstock.learner.algorithms import loss_cells
from penstock.learner.algorithms.cells import NoBaseline, NoValue, OwnValue, ValueCredit, ValueHead

if TYPE_CHECKING:
    from penstock.learner.config import AlgorithmSection


@dataclass(frozen=True)
class Sizes:
    """What of the rest of a run matters to its algorithm."""

    group_size: int
    groups_per_step: int
    updates: int
    """Updates per train step: epochs × mini-batches."""
    max_tokens: int
    """Longest answer."""
    steps: int | None = None
    """Train steps of the run, where they are limited."""


class Contradiction(NamedTuple):
    """One of them."""

    key: str
    """Path in the run file."""
    problem: str
    allowed: str = ""
    remedy: str = ""
    level: Literal["error", "warning"] = "error"


def contradictions(section: AlgorithmSection, sizes: Sizes) -> Iterator[Contradiction]:
    """Everything in `section` that contradicts itself or `sizes`."""
    yield from _groups(section, sizes)
    yield from _credit(section)
    yield from _values(section, sizes)
    yield from _weights(section)
    yield from _reductions(section, sizes)
    yield from _updates(section, sizes)


def _groups(section: AlgorithmSection, sizes: Sizes) -> Iterator[Contradiction]:
    baseline, size = section.baseline, sizes.group_size
    compares = baseline.scope == "group"
    if compares and size < 2:
        problem = f"the baseline {baseline.kind} compares the answers of a group, and one answer has no other"
        yield Contradiction("rollout.group_size", problem, "2 or more", "or algorithm.baseline: {kind: others_mean}")
    elif section.group_filter == "signal" and size < 2:
        problem = "a group of one answer never differs in reward, so every group would be replaced for ever"
        yield Contradiction("algorithm.group_filter", problem, "'all', or a rollout.group_size of 2 or more")
    if compares and section.quorum < 2:
        problem = f"the baseline {baseline.kind} compares scored answers of a group, and one has no other"
        yield Contradiction("algorithm.quorum", problem, "2 or more")
    # Where a group of one is what is wrong, as said above, a quorum of 2 is right.
    if section.quorum > (max(size, 2) if compares else size):
        problem = f"no group of {size} answers can have {section.quorum} scored ones"
        yield Contradiction("algorithm.quorum", problem, f"up to {size}")
    if section.whitening.over == "sequences" and size * sizes.groups_per_step < 2:
        problem = "a batch of one answer has no spread to be whitened by"
        yield Contradiction("algorithm.whitening.over", problem, "'none', or a larger batch")
    if baseline.other_prompts and sizes.groups_per_step < 2:
        problem = f"the baseline {baseline.kind} is of the batch's other prompts, and there are none: it is 0"
        yield Contradiction("learner.groups_per_step", problem, "2 or more", level="warning")


def _credit(section: AlgorithmSection) -> Iterator[Contradiction]:
    """Baseline, whitening and credit work on each other's results."""
    baseline, over, credit = section.baseline, section.whitening.over, section.credit
    if isinstance(credit, ValueCredit):
        if not isinstance(baseline, NoBaseline):
            problem = f"the credit {credit.kind} takes its baseline from the values, so {baseline.kind} is never used"
            yield Contradiction("algorithm.baseline", problem, "none", "algorithm.baseline: {kind: none}")
        if over == "sequences":
            problem = f"the credit {credit.kind} gives every token an advantage of its own, not the answer"
            yield Contradiction("algorithm.whitening.over", problem, "'tokens' or 'none'")
    elif over == "tokens":
        problem = f"the credit {credit.kind} spreads the answer's advantage: counted by tokens, long answers decide"
        yield Contradiction("algorithm.whitening.over", problem, "'sequences' or 'none'")
    if credit.needs_shift and not baseline.shifts:
        problem = f"the credit {credit.kind} takes a number off the reward, and {baseline.kind} also divides it"
        yield Contradiction("algorithm.baseline", problem, remedy="use group_mean, or credit: {kind: outcome}")
    if credit.needs_shift and over == "sequences":
        problem = f"the credit {credit.kind} takes a number off the reward, and whitening also divides it"
        yield Contradiction("algorithm.whitening.over", problem, "'none'", "or use credit: {kind: outcome}")


def _values(section: AlgorithmSection, sizes: Sizes) -> Iterator[Contradiction]:
    credit, value = section.credit, section.value
    if isinstance(credit, ValueCredit) and isinstance(value, NoValue):
        problem = f"the credit {credit.kind} needs a value model"
        remedy = "algorithm.value: {kind: own} (a model of its own) or {kind: head} (on the policy's backbone)"
        yield Contradiction("algorithm.value", problem, "own or head", remedy)
    if not isinstance(credit, ValueCredit) and not isinstance(value, NoValue):
        problem = f"the credit {credit.kind} asks no value model, so it would be trained for nothing"
        remedy = "algorithm.value: {kind: none}, or algorithm.credit: {kind: gae}"
        yield Contradiction("algorithm.value", problem, "none", remedy)
    if isinstance(value, OwnValue | ValueHead) and sizes.steps is not None and value.warmup_steps >= sizes.steps:
        problem = f"the run ends after {sizes.steps} steps, in which only the value model would learn"
        yield Contradiction("algorithm.value.warmup_steps", problem, f"below {sizes.steps}")


def _weights(section: AlgorithmSection) -> Iterator[Contradiction]:
    """The ratio to the sampler belongs into the loss once."""
    trust, credit, objective = section.trust, section.credit, section.objective
    remedy = "algorithm.trust: {kind: none}"
    traced = isinstance(credit, ValueCredit) and credit.corrects
    compares = objective.ratio == "sampler"
    if traced and trust.weighs:
        problem = f"the credit {credit.kind} holds π_prox/μ already, and {trust.kind} would multiply it twice"
        yield Contradiction("algorithm.trust", problem, "none", remedy)
    elif compares and trust.weighs:
        problem = f"the objective {objective.kind} holds π/μ already, and {trust.kind} would multiply it twice"
        yield Contradiction("algorithm.trust", problem, "none", remedy)
    if traced and compares:
        problem = f"both the credit {credit.kind} and the objective {objective.kind} hold the ratio to the sampler"
        yield Contradiction("algorithm.objective", problem, remedy="use ppo_clip or policy_gradient, or credit gae")
    if objective.ratio_of == "answer" and trust.weighs and trust.weight_of == "token":
        problem = f"{trust.kind} weighs every token by itself, and {objective.kind} has one ratio for the whole answer"
        yield Contradiction("algorithm.trust", problem, remedy="sequence_is, or none", level="warning")
    if section.reject.rejects and not (trust.weighs or traced or compares):
        problem = f"{section.reject.kind} leaves the worst tokens out, and nothing weighs those that stay"
        yield Contradiction("algorithm.trust", problem, remedy="truncated_is is usual", level="warning")


def _reductions(section: AlgorithmSection, sizes: Sizes) -> Iterator[Contradiction]:
    objective, reduction = section.objective, section.reduction
    if objective.reductions and reduction.kind not in objective.reductions:
        allowed = " or ".join(objective.reductions)
        problem = objective.reductions_only or "the paper's loss counts every answer once, this one by its length"
        level: Literal["error", "warning"] = "error" if objective.reductions_only else "warning"
        text = f"does not go with the objective {objective.kind}: {problem}"
        yield Contradiction("algorithm.reduction.kind", text, allowed, level=level)
    if reduction.budget is not None and reduction.budget != sizes.max_tokens:
        problem = f"differs from rollout.sampling.max_tokens, which is {sizes.max_tokens}"
        yield Contradiction("algorithm.reduction.budget", problem, remedy="leave it out", level="warning")


def _updates(section: AlgorithmSection, sizes: Sizes) -> Iterator[Contradiction]:
    """What needs several updates per step, and what none but the first is right for."""
    objective, trust = section.objective, section.trust
    several = "learner.epochs or learner.mini_batches above 1"
    if isinstance(objective, loss_cells.PPOKL) and objective.coefficient == 0:
        moves = not isinstance(objective.controller, loss_cells.Fixed)
        problem = f"{'a controller multiplies it, and 0 stays 0: ' if moves else ''}there would be no penalty"
        yield Contradiction("algorithm.objective.coefficient", problem, "more than 0")
    if sizes.updates == 1:
        if objective.with_one_update:
            problem = f"with one update per step the policy is still π_prox: {objective.with_one_update}"
            yield Contradiction("algorithm.objective", problem, remedy=several, level="warning")
        if trust.with_one_update():
            problem = f"with one update per step the policy is still π_prox: {trust.with_one_update()}"
            remedy = f"{several}, or algorithm.trust: {{kind: truncated_is}}"
            yield Contradiction("algorithm.trust", problem, remedy=remedy, level="warning")
    elif objective.ratio == "none":
        problem = (
            f"the objective {objective.kind} has no ratio: of the step's {sizes.updates} updates all but the first are "
            "off-policy, and nothing corrects them"
        )
        remedy = "objective ppo_clip, or learner.epochs and learner.mini_batches of 1"
        yield Contradiction("algorithm.objective", problem, remedy=remedy, level="warning")
