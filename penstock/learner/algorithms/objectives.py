# ruff: noqa: ARG001  (one signature for all)
"""Objectives: per-token losses to minimise, and per-token facts about them. Pure functions.

All share one signature, so that a row may hold any of them. Every argument is [rows, window]; `mask` is True on
the tokens that count, and what stands elsewhere, NaN included, has no effect on value or gradient: inputs are
masked before they are exponentiated, because `where(mask, exp(x), 0)` still passes NaN backwards.

Notation: π the policy being optimised, π_prox the policy at the start of the train step, μ the sampler.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Facts = dict[str, Tensor]
"""Per-token values [rows, window] by metric name, to be averaged over the tokens that count."""


def log_ratio(
    over: Float[Tensor, "rows window"], under: Float[Tensor, "rows window"], mask: Bool[Tensor, "rows window"]
) -> Float[Tensor, "rows window"]:
    """`over − under` where `mask`, exactly 0 elsewhere, without a path for gradients from there."""
    zero = over.new_zeros(())
    return torch.where(mask, over, zero) - torch.where(mask, under, zero).to(over.dtype)


def ppo_clip(
    logp: Float[Tensor, "rows window"],
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, "rows window"], Facts]:
    """−min(r A, clip(r, 1 − clip_low, 1 + clip_high) A) with r = π/π_prox (PPO, arXiv 1707.06347, eq. 7).

    Unequal bounds are DAPO's clip-higher (arXiv 2503.14476, eq. 10). A token counts as clipped only where the
    clipped branch is the smaller one, so that its gradient is cut.
    """
    ratio = log_ratio(logp, logp_prox.detach(), mask).exp()
    weight = torch.where(mask, advantages, advantages.new_zeros(())).to(logp.dtype)
    loss = -torch.minimum(ratio * weight, ratio.clamp(1 - clip_low, 1 + clip_high) * weight)
    facts = {
        "actor/pg_clipfrac_low": ((ratio < 1 - clip_low) & (weight < 0)).float(),
        "actor/pg_clipfrac_high": ((ratio > 1 + clip_high) & (weight > 0)).float(),
    }
    return torch.where(mask, loss, loss.new_zeros(())), facts


def policy_gradient(
    logp: Float[Tensor, "rows window"],
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
) -> tuple[Float[Tensor, "rows window"], Facts]:
    """−A log π (REINFORCE; Williams 1992)."""
    zero = logp.new_zeros(())
    return -torch.where(mask, advantages.to(logp.dtype), zero) * torch.where(mask, logp, zero), {}
