"""An archived step computed anew, in one process of plain torch: what gradient another algorithm makes of its groups.

Assembly, the pass over the batch at the start and the loss are the train step's own functions; only what DeepSpeed
does, adding gradients up, is done by autograd here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penstock.learner import deal
from penstock.learner.algorithms.bound import BoundAlgorithm, bind
from penstock.learner.archived import Models, Step
from penstock.learner.assemble import assemble
from penstock.learner.config import AlgorithmSection
from penstock.learner.deal import Share
from penstock.learner.diagnostics import step_metrics
from penstock.learner.dials import ENTROPY
from penstock.learner.feed import why_useless
from penstock.learner.micro import MicroBatch
from penstock.learner.ranks import Team
from penstock.learner.start import begin
from penstock.learner.step import micro_losses
from penstock.learner.tally import Tally
from penstock.services.contracts import PenstockError
from penstock.services.logprobs import plan_micro_batches
from penstock.services.trajectory import Group

_ALONE = Team(0, 1, 0.0, None)
GROUPS = "whatif/groups"
"""Metric: groups that an algorithm made its batch of."""


class Unfit(PenstockError):
    """An algorithm that needs what the archive does not have; the text says what."""


@dataclass(frozen=True)
class Outcome:
    """What an algorithm makes of a step."""

    metrics: dict[str, float]
    gradient: list[Tensor]
    """Of the policy, parameter by parameter."""


def outcome(
    step: Step,
    models: Models,
    section: AlgorithmSection,
    token_budget: int,
    following: Path | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Outcome:
    """The gradient of the whole batch in one update, at the weights the step started from; with `following`, the
    archived step after it, at the weights that this one has led to. Raises Unfit."""
    algorithm = _algorithm(step, models, section)
    groups = _groups(step, algorithm)
    try:
        batch = assemble(groups, algorithm, step.moment)
    except PenstockError as error:
        raise Unfit(str(error)) from error
    batch = deal.weigh(batch, [range(len(batch))], algorithm.reduction)
    share = Share(batch, [plan_micro_batches(batch.row_tokens.tolist(), token_budget)], [[0]])
    start = begin(models, share, algorithm, _ALONE, keep_logprobs=True, alive=alive)
    if following is not None:
        models.advance(following)
    models.policy.zero_grad()
    tally, pull = Tally(), Tally()
    for part in start.parts[0]:
        alive()
        seen: list[Tensor] = []
        losses = micro_losses(models, part, _watched(algorithm, seen), start.bound, False, tally)
        assert losses.policy is not None, "the policy is not frozen here"
        losses.policy.backward()  # type: ignore[no-untyped-call]
        _add_pull(pull, part, seen)
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in models.policy.parameters()]
    models.policy.zero_grad(set_to_none=True)
    metrics = step_metrics(tally.over(_ALONE), 1) | start.metrics | _effective(pull)
    return Outcome(metrics | {GROUPS: float(len(groups))}, gradient)


def _groups(step: Step, algorithm: BoundAlgorithm) -> list[Group]:
    """Those that the algorithm would train on: the step may have been fed by another filter and quorum."""
    found = [(group, why_useless(group, algorithm)) for group in step.groups]
    if useful := [group for group, why in found if not why]:
        return useful
    unscored = sum(why == "unscored" for _, why in found)
    why = f"{unscored} have fewer scored answers than its quorum of {algorithm.quorum}" if unscored else ""
    flat = f"{len(found) - unscored} have no signal (group_filter: signal)" if unscored < len(found) else ""
    raise Unfit(
        f"it would train on none of the {len(found)} groups of the step that ended in version {step.version}: "
        + ", ".join(filter(None, (why, flat)))
    )


def _algorithm(step: Step, models: Models, section: AlgorithmSection) -> BoundAlgorithm:
    own = AlgorithmSection.model_validate(step.facts["algorithm"])
    # Where a coefficient of the run has moved, it has moved for all that share its cell.
    shared = {
        "kl": section.kl == own.kl,
        "objective": section.objective == own.objective,
        "trust": section.trust == own.trust,
        ENTROPY: section.entropy_coefficient == own.entropy_coefficient,
    }
    moved = {name: b for name, b in step.facts["coefficients"].items() if shared.get(name.split(".")[0])}
    algorithm = bind(section).at(moved)
    if algorithm.value is None:
        return algorithm
    if not models.has_values:
        raise Unfit("it needs values, and the archive has no value model")
    if section.value.own_backbone and models.critic is None:
        # Values of a head stand in for those of a model of its own, whose loss would not move the policy.
        return replace(algorithm, value=replace(algorithm.value, coefficient=0.0))
    return algorithm


def _watched(algorithm: BoundAlgorithm, seen: list[Tensor]) -> BoundAlgorithm:
    """The same algorithm; the gradient at every log-prob is added to `seen` in the backward pass."""

    def objective(logp: Tensor, *given: Tensor) -> Any:
        if logp.requires_grad:
            logp.register_hook(seen.append)  # type: ignore[no-untyped-call]
        return algorithm.objective(logp, *given)

    return replace(algorithm, objective=objective)


def _add_pull(pull: Tally, part: MicroBatch, seen: Sequence[Tensor]) -> None:
    """How hard every token pulls at the policy for its advantage and its share of the reduction: the weight that the
    algorithm really gives it, whatever part of it that comes from."""
    due = part.weights.unsqueeze(-1) * part.advantages.abs()
    counts = part.mask & (due > 0)
    given = seen[0].abs() if seen else torch.zeros_like(due)
    weights = torch.where(counts, given / torch.where(counts, due, 1.0), 0.0).double()
    pull.add("first", weights, counts)
    pull.add("second", weights.square(), counts)


def _effective(pull: Tally) -> dict[str, float]:
    totals = pull.over(_ALONE)
    count, first, second = totals.count("first"), totals.sum("first"), totals.sum("second")
    return {"whatif/ess": first**2 / (count * second) if second > 0 else 0.0}


def norm(gradient: Sequence[Tensor]) -> float:
    """Of all parameters together; sums in doubles."""
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradient))


def cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Of the angle between two gradients; NaN where one of them is zero."""
    product = sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))
    length = norm(one) * norm(other)
    return product / length if length > 0 else float("nan")
