# ruff: noqa: ARG001  (one signature for all)
"""Reductions: the losses of tokens to one number, with denominators of the whole mini-batch.

Every reduction of the field is a sum over tokens in which all tokens of a sequence weigh the same. So a
reduction is a function from the counts of the *whole* mini-batch, over all ranks, to one weight per sequence;
what a rank then computes for its share, in however many micro-batches, is a plain sum, and the sums of all
ranks add up to the same loss and gradient however the rows were dealt out.

`counts` [sequences] is the number of tokens that count in each sequence, before any correction rejects some;
`groups` [sequences] names the prompt each belongs to. Sequences without such a token weigh nothing and are not
counted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Weights = Callable[..., Tensor]


def token_mean(counts: Int[Tensor, " sequences"], groups: Int[Tensor, " sequences"]) -> Float[Tensor, " sequences"]:
    """1 / (tokens of the mini-batch)."""
    return _over(torch.ones_like(counts), counts.sum(), counts)


def group_token_mean(
    counts: Int[Tensor, " sequences"], groups: Int[Tensor, " sequences"]
) -> Float[Tensor, " sequences"]:
    """1 / (groups · tokens of the sequence's group), as in DAPO (2503.14476) and ScaleRL (2510.13786)."""
    _, member = torch.unique(groups, return_inverse=True)
    per_group = torch.zeros(int(member.max()) + 1 if len(member) else 0, dtype=counts.dtype)
    per_group.index_add_(0, member, counts)
    return _over(torch.ones_like(counts), (per_group > 0).sum() * per_group[member], counts)


def sequence_mean(counts: Int[Tensor, " sequences"], groups: Int[Tensor, " sequences"]) -> Float[Tensor, " sequences"]:
    """1 / (sequences · tokens of the sequence), as in GRPO (2402.03300)."""
    return _over(torch.ones_like(counts), (counts > 0).sum() * counts, counts)


def fixed_length(
    counts: Int[Tensor, " sequences"], groups: Int[Tensor, " sequences"], budget: int
) -> Float[Tensor, " sequences"]:
    """1 / (sequences · budget), as in Dr. GRPO (2503.20783): the budget is the configured one, not a padded width."""
    return _over(torch.ones_like(counts), (counts > 0).sum() * budget, counts)


def sequence_sum(counts: Int[Tensor, " sequences"], groups: Int[Tensor, " sequences"]) -> Float[Tensor, " sequences"]:
    """1 / sequences."""
    return _over(torch.ones_like(counts), (counts > 0).sum(), counts)


def _over(ones: Tensor, denominator: Tensor, counts: Tensor) -> Tensor:
    """1 / denominator where a sequence has tokens that count, 0 elsewhere, in float64."""
    return torch.where(counts > 0, ones.double() / denominator.clamp(min=1), 0.0)


def weighted_sum(
    losses: Float[Tensor, "rows window"], keep: Bool[Tensor, "rows window"], weights: Float[Tensor, " rows"]
) -> Float[Tensor, ""]:
    """Σ weights · losses over the tokens to keep: this share's part of the whole loss."""
    kept = torch.where(keep, losses, losses.new_zeros(()))
    return (kept.sum(dim=-1) * weights.to(losses.dtype)).sum()


REDUCTIONS: dict[str, Weights] = {
    "token_mean": token_mean,
    "group_token_mean": group_token_mean,
    "sequence_mean": sequence_mean,
    "fixed_length": fixed_length,
    "sequence_sum": sequence_sum,
}
