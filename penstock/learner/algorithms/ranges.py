"""Which tokens have log-ratios that floats can hold. Pure functions, no gradients.

e^80 is 5.5e34 and the largest float32 3.4e38: within ±80 nats every weight, ratio and penalty of a token, the
product of two of them, and their gradients are finite. What lies beyond is masked and counted, never clamped: a clamp
would change the gradient without a trace. It stays in the denominators.
"""

from __future__ import annotations

import functools

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LIMIT = 80.0
"""Nats."""
OUT_OF_RANGE = "actor/out_of_range"
"""Name of the fact: share of the tokens that count which were masked for their range."""


def within_range(
    mask: Bool[Tensor, "rows window"], *logps: Float[Tensor, "rows window"], limit: float = LIMIT
) -> tuple[Bool[Tensor, "rows window"], dict[str, Tensor]]:
    """`mask` without the tokens whose log-probs under the given policies lie more than `limit` nats apart, and the fact
    of which these are.

    The comparison is one that NaN passes: an undefined log-prob, and a token that is impossible under all policies,
    must make the loss NaN, so that the update is skipped, and not vanish here.
    """
    detached = [logp.detach() for logp in logps]
    spread = functools.reduce(torch.maximum, detached) - functools.reduce(torch.minimum, detached)
    beyond = mask & (spread > limit)
    return mask & ~beyond, {OUT_OF_RANGE: beyond.float()}


def rows_within_range(
    mask: Bool[Tensor, "rows window"], log_ratios: Float[Tensor, "rows 1"], limit: float = LIMIT
) -> tuple[Bool[Tensor, "rows window"], dict[str, Tensor]]:
    """The same for the log-ratio of a whole answer: all of its tokens, or none. NaN passes."""
    beyond = mask & (log_ratios.detach().abs() > limit)
    return mask & ~beyond, {OUT_OF_RANGE: beyond.float()}


def combined(*facts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Facts of several functions as one; those of the same name are added, since each names other tokens."""
    found: dict[str, Tensor] = {}
    for each in facts:
        for name, values in each.items():
            found[name] = found[name] + values if name in found else values
    return found
