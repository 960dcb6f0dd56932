"""Facts about a step that are reported whatever the algorithm: divergences, importance weights, lag, mismatch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penstock.learner.algorithms.kl import k3
from penstock.learner.algorithms.objectives import Facts
from penstock.learner.tally import Tally, Totals

if TYPE_CHECKING:
    from penstock.learner.step import MicroBatch

_WEIGHT, _SQUARE = "rollout_corr/mean", "_weight_squared"


def observe(tally: Tally, part: MicroBatch, logp: Tensor, prox: Tensor, entropy: Tensor, facts: Facts) -> None:
    """Add the facts of one micro-batch; tensors are [rows, window] and carry no gradient."""
    mask, nothing = part.mask, torch.zeros_like(logp)
    logp, prox = torch.where(mask, logp, nothing), torch.where(mask, prox, nothing)
    sampler = torch.where(mask, part.logp_sampler, nothing)
    # Doubles: the weights of a few far-off tokens must not overflow their squares.
    weights = (prox - sampler).double().exp()
    tally.add(_WEIGHT, weights, mask)
    tally.add(_SQUARE, weights.square(), mask)
    tally.highest("rollout_corr/max", weights, mask)
    tally.add("kl/offpolicy", k3(sampler, prox), mask)
    tally.add("kl/update", k3(prox, logp), mask)
    if part.logp_reference is not None:
        tally.add("kl/reference", k3(logp, torch.where(mask, part.logp_reference, nothing)), mask)
    tally.add("actor/entropy", entropy, mask)
    tally.add("off_policy/mean", part.lags, mask)
    tally.highest("off_policy/max", part.lags, mask)
    tally.add("off_policy/older_kv", part.older_kv, mask)
    # Same weights on both sides: what differs here is arithmetic alone.
    same = mask & (part.lags == 0) & ~part.older_kv
    difference = (prox - sampler).abs()
    tally.add("mismatch/mean", difference, same)
    tally.highest("mismatch/max", difference, same)
    for name, values in facts.items():
        tally.add(name, values, mask)


def step_metrics(totals: Totals, updates: int) -> dict[str, float]:
    """Means over the tokens that count, maxima, and the effective sample size (Σw)²/(n Σw²) of the raw weights."""
    metrics = totals.means() | totals.maxima()
    squared = metrics.pop(_SQUARE, None)
    if squared is not None and squared > 0:
        metrics["rollout_corr/ess"] = metrics[_WEIGHT] ** 2 / squared
    for name in ("actor/pg_loss", "actor/loss"):
        # Tallied once per micro-batch and rank; a loss is their sum, and a step's loss the mean over its updates.
        metrics[name] = totals.sum(name) / updates
    return metrics
