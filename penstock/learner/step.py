"""One train step, as in the papers: log-probs, advantages, trust, objective, KL, reduction, values, update."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from penstock.learner.algorithms.composition import compose
from penstock.learner.algorithms.reductions import weighted_sum
from penstock.learner.critic import split_values
from penstock.learner.diagnostics import observe, observe_step
from penstock.learner.exhibit import Exhibit
from penstock.learner.forward import policy_pass, value_pass
from penstock.learner.start import Parts, begin
from penstock.learner.tally import Tally

if TYPE_CHECKING:
    from penstock.learner.algorithms.bound import BoundAlgorithm, ValueUse
    from penstock.learner.algorithms.composition import Composed
    from penstock.learner.batch import Array
    from penstock.learner.config import LearnerSection
    from penstock.learner.deal import Share
    from penstock.learner.engines import Engines
    from penstock.learner.forward import Models
    from penstock.learner.micro import MicroBatch
    from penstock.learner.ranks import Team


@dataclass(frozen=True)
class StepResult:
    """What one train step did, on this rank."""

    applied: int
    """Updates that were made; 0 means that every weight is what it was."""
    skipped: int
    """Updates that no rank applied, because a gradient was infinite or undefined."""
    tally: Tally
    metrics: dict[str, float]
    """What is known over all ranks already."""
    logp_start: Array
    """[N] log-probs of this rank's tokens at the start of the step; empty unless asked for."""
    shown: dict[str, Array]
    """Columns of the tokens of the share's `shown` rows, end to end; empty without any."""


class Losses(NamedTuple):
    """This micro-batch's part of the losses of its mini-batch; None for a model that is not trained on it."""

    policy: Float[Tensor, ""] | None
    """With the value head's, if it has one."""
    critic: Float[Tensor, ""] | None
    """Of the value model with a backbone of its own."""


def train_step(
    engines: Engines,
    share: Share,
    algorithm: BoundAlgorithm,
    section: LearnerSection,
    team: Team,
    keep_logprobs: bool = False,
    policy_frozen: bool = False,
    alive: Callable[[], None] = lambda: None,
) -> StepResult:
    """Every epoch and mini-batch of one step, on this rank's share. Collective: all ranks call it together.

    `policy_frozen`: only values are learned. `alive` is called before every micro-batch and update.
    """
    start = begin(engines, share, algorithm, team, keep_logprobs, alive)
    tally, exhibit = Tally(), Exhibit(share)
    applied = skipped = 0
    for order in share.epochs:
        for mini in order:
            for place, part in enumerate(start.parts[mini]):
                alive()
                watch = partial(exhibit.look, mini, place, part)
                losses = micro_losses(engines, part, algorithm, start.bound, policy_frozen, tally, watch)
                last = place == len(start.parts[mini]) - 1
                if losses.policy is not None:
                    engines.policy.backward(losses.policy, last)
                if losses.critic is not None and engines.critic is not None:
                    engines.critic.backward(losses.critic, last)
            alive()
            update = engines.update(section, policy_frozen)
            applied, skipped = applied + bool(update), skipped + (not update)
            for name, value in update.items():
                tally.add_number(name, value)
    if algorithm.follows_step and not policy_frozen:
        _look_back(engines, start.parts, tally, alive)
    kept = _by_row(share, start.parts) if keep_logprobs else np.zeros(0, np.float32)
    return StepResult(applied, skipped, tally, start.metrics, kept, exhibit.columns())


def _look_back(models: Models, parts: Parts, tally: Tally, alive: Callable[[], None]) -> None:
    """What the updates together have done to the policy: each of them was measured before it was made."""
    for part in itertools.chain(*parts):
        alive()
        with torch.no_grad():
            observe_step(tally, part, policy_pass(models.policy, part)[0])


def micro_losses(
    models: Models,
    part: MicroBatch,
    algorithm: BoundAlgorithm,
    bound: float,
    policy_frozen: bool,
    tally: Tally,
    watch: Callable[[Tensor, Composed], None] = lambda _prox, _made: None,
) -> Losses:
    """The loss of the policy and of the values, and everything that is reported of them. `watch` is shown log π_prox
    and what was made of it."""
    shared = algorithm.value is not None and models.critic is None
    with torch.set_grad_enabled(shared or not policy_frozen):
        logp, entropy, values = policy_pass(models.policy, part, algorithm.entropy_coefficient > 0)
    prox = logp.detach() if part.logp_prox is None else part.logp_prox
    made = compose(
        algorithm,
        logp,
        prox,
        part.logp_sampler,
        part.logp_reference,
        part.advantages,
        part.mask,
        part.weights,
        entropy,
        bound,
    )
    observe(tally, part, made.mask, made.keep, logp.detach(), prox, entropy.detach(), made.facts)
    watch(prox, made)
    tally.add_number("actor/pg_loss", made.policy.detach())
    tally.add_number("actor/loss", made.loss.detach())
    policy = None if policy_frozen else made.loss
    if algorithm.value is None:
        return Losses(policy, None)
    if models.critic is not None:
        values = value_pass(models.critic, part)
    assert values is not None, "an algorithm with values has a value head or a value model"
    critic = algorithm.value.coefficient * _value_loss(algorithm.value, part, values, tally)
    if shared:
        return Losses(critic if policy is None else policy + critic, None)
    return Losses(policy, critic)


def _value_loss(use: ValueUse, part: MicroBatch, found: Tensor, tally: Tally) -> Float[Tensor, ""]:
    """Reduced as the policy's is, over all tokens with a return: values are learned from what is rejected, too."""
    assert part.old_values is not None and part.returns is not None, "laid into it at the start"
    values, _ = split_values(found, part.rows)
    losses, facts = use.loss(values, part.old_values, part.returns, part.credited)
    for name, value in facts.items():
        tally.add(name, value, part.credited)
    loss = weighted_sum(losses, part.credited, part.weights)
    tally.add_number("critic/loss", loss.detach())
    return loss


def _by_row(share: Share, parts: Parts) -> Array:
    """log π_prox in the order of the share's rows."""
    per_row: list[Array] = [np.zeros(0, np.float32)] * len(share.batch)
    for plan, mini in zip(share.mini_batches, parts, strict=True):
        for rows, part in zip(plan, mini, strict=True):
            assert part.logp_prox is not None, "asked for at the start"
            for i, row in enumerate(rows):
                per_row[row] = part.logp_prox[i][part.rows.responses[i]].float().cpu().numpy()
    return np.concatenate([*per_row, np.zeros(0, np.float32)])
