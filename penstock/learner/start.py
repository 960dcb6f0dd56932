"""What a train step computes over its whole share before the first update.

log π_prox, values, advantages and returns from them, moments and bounds over the tokens of all ranks. All of it is laid
into the micro-batches, so that the updates need to know nothing else.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from penstock.learner.algorithms.bound import BoundAlgorithm, ValueUse
from penstock.learner.algorithms.ranges import within_range
from penstock.learner.algorithms.values import error_sums, explained_variance
from penstock.learner.critic import split_values
from penstock.learner.deal import Share
from penstock.learner.forward import Models, policy_pass, value_pass
from penstock.learner.micro import MicroBatch
from penstock.learner.ranks import Team

Parts = list[list[MicroBatch]]
"""Mini-batch → micro-batch."""


@dataclass(frozen=True)
class Start:
    """A share as the updates take it."""

    parts: Parts
    bound: float
    """Of the rejection, on the square of a log-ratio; infinity where it needs none."""
    metrics: dict[str, float]
    """Of the values and the advantages from them, over all ranks."""


def begin(
    models: Models,
    share: Share,
    algorithm: BoundAlgorithm,
    team: Team,
    keep_logprobs: bool = False,
    alive: Callable[[], None] = lambda: None,
) -> Start:
    """The share with what has to be known of it beforehand; collective. With a single update and nothing else that asks
    for log π_prox, π is still π_prox when it is used, and no forward pass is made here."""
    parts = [[MicroBatch.of(share.batch, r, models.device) for r in mini] for mini in share.mini_batches]
    if share.updates > 1 or keep_logprobs or algorithm.needs_start:
        parts = _each(parts, lambda part: _looked_at(models, part, algorithm.value, alive))
    metrics = _value_metrics(parts, team) if algorithm.value is not None else {}
    if algorithm.whiten_tokens_eps is not None:
        parts = _whitened(parts, algorithm.whiten_tokens_eps, team)
    if algorithm.value is not None:
        metrics["batch/advantage_max"] = _largest(parts, team)
    return Start(parts, _bound(parts, algorithm, team), metrics)


def _looked_at(models: Models, part: MicroBatch, value: ValueUse | None, alive: Callable[[], None]) -> MicroBatch:
    """With log π_prox and, where there is a value model, advantages and returns from what it says."""
    alive()
    with torch.no_grad():
        logp, _, found = policy_pass(models.policy, part)
        if value is None:
            return replace(part, logp_prox=logp)
        if models.critic is not None:
            alive()
            found = value_pass(models.critic, part)
    assert found is not None, "an algorithm with values has a value head or a value model"
    values, after = split_values(found, part.rows)
    # An answer that ended has no state after it; one that was cut at its budget has, and may be taken to go on.
    after = torch.where(part.truncated, after, 0.0) if value.bootstrap_truncated else torch.zeros_like(after)
    # Credit flows from token to token: one without a usable ratio must not reach its neighbours. The loss, which takes
    # the whole mask, still sees what is undefined, and so the update is skipped.
    mask, _ = within_range(part.mask, logp, part.logp_sampler)
    mask = mask & (logp - part.logp_sampler).isfinite()
    advantages, returns = value.credit(part.token_rewards, values, after, logp, part.logp_sampler, mask)
    return replace(part, logp_prox=logp, old_values=values, advantages=advantages, returns=returns, within=mask)


def _value_metrics(parts: Parts, team: Team) -> dict[str, float]:
    """How good the old values were, over all ranks."""
    sums = np.zeros(5)
    for part in itertools.chain(*parts):
        assert part.old_values is not None and part.returns is not None, "laid into it just before"
        sums += error_sums(part.old_values, part.returns, part.credited).cpu().numpy()
    count, errors, error_squares, returns, return_squares = team.sum(sums).tolist()
    if count == 0:
        return {}
    explained = explained_variance(count, errors, error_squares, returns, return_squares)
    means = {"critic/value_mean": (returns - errors) / count, "critic/return_mean": returns / count}
    return means if math.isnan(explained) else means | {"critic/explained_variance": explained}


def _largest(parts: Parts, team: Team) -> float:
    """The largest absolute advantage on all ranks."""
    mine = [float(t.abs().max()) for t in _advantages(parts) if t.numel()]
    return float(team.max(np.asarray([max(mine, default=0.0)]))[0])


def _whitened(parts: Parts, eps: float, team: Team) -> Parts:
    """Advantages with mean 0 and standard deviation 1 (n − 1) over the tokens that count on all ranks; unchanged for
    fewer than two tokens. Two passes: the squares of a large mean would swallow a small deviation."""

    def total(of: Callable[[Tensor], Tensor]) -> float:
        return float(team.sum(np.asarray([sum(float(of(t)) for t in _advantages(parts))]))[0])

    count = total(lambda t: torch.tensor(t.numel()))
    if count < 2:
        return parts
    mean = total(Tensor.sum) / count
    deviation = math.sqrt(total(lambda t: (t - mean).square().sum()) / (count - 1))

    def whiten(part: MicroBatch) -> MicroBatch:
        centred = (part.advantages.double() - mean) / (deviation + eps)
        return replace(part, advantages=torch.where(part.credited, centred, 0.0).to(part.advantages.dtype))

    return _each(parts, whiten)


def _bound(parts: Parts, algorithm: BoundAlgorithm, team: Team) -> float:
    """The rejection's bound from the log-ratios of all ranks; the same number on each."""
    if algorithm.reject_bound is None:
        return math.inf
    mine = [t.cpu().numpy() for t in _log_ratios(parts)]
    gathered = team.gather(np.concatenate([np.zeros(0), *mine]).tobytes())
    bound = math.inf
    if team.leads:
        bound = algorithm.reject_bound(torch.from_numpy(np.concatenate([np.frombuffer(g) for g in gathered])))
    (bound,) = struct.unpack("<d", team.announce(struct.pack("<d", bound)))
    return float(bound)


def _each(parts: Parts, change: Callable[[MicroBatch], MicroBatch]) -> Parts:
    return [[change(part) for part in mini] for mini in parts]


def _advantages(parts: Parts) -> Iterator[Tensor]:
    """Of the tokens that have one [tokens], in doubles, micro-batch by micro-batch."""
    for part in itertools.chain(*parts):
        yield part.advantages[part.credited].double()


def _log_ratios(parts: Parts) -> Iterator[Tensor]:
    """Of the tokens that count [tokens], in doubles, micro-batch by micro-batch."""
    for part in itertools.chain(*parts):
        assert part.logp_prox is not None, "laid into it at the start"
        yield part.logp_prox[part.mask].double() - part.logp_sampler[part.mask]
