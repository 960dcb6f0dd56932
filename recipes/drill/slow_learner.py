"""A learner that takes its time, for drills: `algorithm.name=slow_learner:SLOW algorithm.objective.seconds=0.5`."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from penstock.algorithms import Algorithm, GroupMean, ObjectiveCell, Reduction


def slow(
    logp: Tensor,
    logp_prox: Tensor,  # noqa: ARG001  (an objective is given all of them)
    logp_sampler: Tensor,  # noqa: ARG001
    advantages: Tensor,
    mask: Tensor,
    seconds: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The plain policy gradient, some seconds later; [rows, window] all of them."""
    time.sleep(seconds)
    return torch.where(mask, -logp * advantages, 0.0), {}


class Slow(ObjectiveCell):
    """Waits for every micro-batch that it is given."""

    function = "slow_learner:slow"
    seconds: float = 1.0


SLOW = Algorithm(
    name="slow",
    summary="the plain policy gradient, some seconds later",
    paper="none: for drills",
    baseline=GroupMean(),
    objective=Slow(),
    reduction=Reduction(kind="token_mean"),
)
