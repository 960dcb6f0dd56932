# ruff: noqa: ARG001  (one signature for all)
"""Objectives: per-token losses to minimise, and per-token facts about them. Pure functions.

All share one signature, so that a row may hold any of them. Every argument is [rows, window]; `mask` is True on
the tokens that count, and what stands elsewhere, NaN included, has no effect on value or gradient: inputs are
masked before they are exponentiated, because `where(mask, exp(x), 0)` still passes NaN backwards. A row is one
whole answer. Gradients flow through `logp` only.

Notation: π the policy being optimised, π_prox the policy at the start of the train step, μ the sampler, A the
advantage; all log-probs are in nats, of the distribution that was sampled from.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from penstock.learner.algorithms.kl import k3
from penstock.learner.algorithms.ranges import rows_within_range

Facts = dict[str, Tensor]
"""Per-token values [rows, window] by metric name, to be averaged over the tokens that count."""
CLIPPED_LOW, CLIPPED_HIGH = "actor/pg_clipfrac_low", "actor/pg_clipfrac_high"
CLIPPED_DUAL = "actor/pg_clipfrac_dual"


def log_ratio(
    over: Float[Tensor, "rows window"], under: Float[Tensor, "rows window"], mask: Bool[Tensor, "rows window"]
) -> Float[Tensor, "rows window"]:
    """`over − under` where `mask`, exactly 0 elsewhere, without a path for gradients from there."""
    return masked(over, mask) - masked(under, mask).to(over.dtype)


def masked(values: Float[Tensor, "rows window"], mask: Bool[Tensor, "rows window"]) -> Float[Tensor, "rows window"]:
    """`values` where `mask`, exactly 0 elsewhere, without a path for gradients from there."""
    return torch.where(mask, values, values.new_zeros(()))


def row_mean(values: Float[Tensor, "rows window"], mask: Bool[Tensor, "rows window"]) -> Float[Tensor, "rows 1"]:
    """Mean over the tokens that count, of values that are 0 elsewhere; 0 for a row without such a token."""
    return values.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)


def policy_gradient(
    logp: Float[Tensor, "rows window"],
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
) -> tuple[Float[Tensor, "rows window"], Facts]:
    """−A log π (REINFORCE; Williams 1992, and the actor's part of A2C, arXiv 1602.01783, §4).

    Unbiased on-policy; its value is no measure of anything, only its gradient is of use.
    """
    return -masked(advantages, mask).to(logp.dtype) * masked(logp, mask), {}


def _clipped(
    ratio: Float[Tensor, "rows window"], weight: Float[Tensor, "rows window"], clip_low: float, clip_high: float
) -> tuple[Float[Tensor, "rows window"], Facts]:
    """−min(ratio · weight, clip(ratio) · weight), and where the clipped branch is the smaller one."""
    loss = -torch.minimum(ratio * weight, ratio.clamp(1 - clip_low, 1 + clip_high) * weight)
    facts = {
        CLIPPED_LOW: ((ratio < 1 - clip_low) & (weight < 0)).float(),
        CLIPPED_HIGH: ((ratio > 1 + clip_high) & (weight > 0)).float(),
    }
    return loss, facts


def ppo_clip(
    logp: Float[Tensor, "rows window"],
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Float[Tensor, "rows window"], Facts]:
    """−min(r A, clip(r, 1 − clip_low, 1 + clip_high) A) with r = π/π_prox (PPO, arXiv 1707.06347, eq. 7); where A < 0
    at most −dual_clip·A (dual clip, arXiv 1912.09729, eq. 5).

    Unequal bounds are DAPO's clip-higher (arXiv 2503.14476, eq. 10). A token counts as clipped only where the
    clipped branch is the smaller one, so that its gradient is cut. At r = 1 the gradient is the policy gradient's;
    away from it, what is clipped is missing from it: a bias, always towards smaller steps.
    """
    ratio = log_ratio(logp, logp_prox.detach(), mask).exp()
    weight = masked(advantages, mask).to(logp.dtype)
    loss, facts = _clipped(ratio, weight, clip_low, clip_high)
    if dual_clip is not None:
        loss = torch.where(weight < 0, torch.minimum(loss, -dual_clip * weight), loss)
        facts[CLIPPED_DUAL] = ((ratio > dual_clip) & (weight < 0)).float()
    return masked(loss, mask), facts


def ppo_kl(
    logp: Float[Tensor, "rows window"],
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    coefficient: float,
) -> tuple[Float[Tensor, "rows window"], Facts]:
    """−r A + β KL(π_prox‖π) with r = π/π_prox (PPO with a KL penalty, arXiv 1707.06347, eq. 8).

    The divergence is estimated as r − 1 − log r. For tokens that π_prox sampled, both its value and its gradient are
    unbiased: the tokens come from the first argument of this KL, unlike those of KL(π‖π_ref) in `kl`.
    """
    prox = masked(logp_prox.detach(), mask).to(logp.dtype)
    own = masked(logp, mask)
    weight = masked(advantages, mask).to(logp.dtype)
    return masked(coefficient * k3(prox, own) - (own - prox).exp() * weight, mask), {}


def gspo(
    logp: Float[Tensor, "rows window"],
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Tensor, "rows window"], Facts]:
    """−min(s A, clip(s, 1 − clip_low, 1 + clip_high) A) with one s = exp(mean_t log π/π_prox) for all tokens of the
    answer (GSPO, arXiv 2507.18071, eq. 5 and 7).

    With `sequence_mean` this is the paper's loss: the mean over tokens of the same value. The geometric mean keeps s
    within the same range at any length, and is not the answer's importance weight: off π_prox it is biased. Clip
    fractions are of tokens in answers that were clipped.
    """
    mean = row_mean(log_ratio(logp, logp_prox.detach(), mask), mask)
    inside, facts = rows_within_range(mask, mean)
    ratio = masked(mean.expand_as(logp), inside).exp()
    weight = masked(advantages, inside).to(logp.dtype)
    loss, clipped = _clipped(ratio, weight, clip_low, clip_high)
    return masked(loss, inside), facts | clipped


def cispo(
    logp: Float[Tensor, "rows window"],
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    max_weight: float,
) -> tuple[Float[Tensor, "rows window"], Facts]:
    """−sg(min(π/μ, max_weight)) A log π (CISPO, arXiv 2506.13585, eq. 4; with only the upper bound, and that absolute,
    as in ScaleRL, arXiv 2510.13786).

    The weight is cut, the gradient never is: also a token beyond the bound is learnt from, with either sign of A. The
    ratio is to the sampler, so it corrects for being off-policy itself. As a weight per token it leaves the
    distribution of states uncorrected.
    """
    ratio = log_ratio(logp.detach(), logp_sampler, mask).exp()
    loss = -ratio.clamp(max=max_weight) * masked(advantages, mask).to(logp.dtype) * masked(logp, mask)
    return masked(loss, mask), {CLIPPED_HIGH: (ratio > max_weight).float()}


def mirror_descent(
    logp: Float[Tensor, "rows window"],
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    tau: float,
) -> tuple[Float[Tensor, "rows window"], Facts]:
    """The token's part of −A log π(y) + (τ/2) (log π(y)/π_prox(y))², y being its answer (Kimi k1.5, arXiv 2501.12599,
    eq. 3): −A log π_t + (τ/2) S log r_t, where S = Σ_t log r_t carries a gradient too.

    The plain sum over the row is the paper's loss, in value and gradient; so only reductions fit that weigh all
    tokens of all answers alike, and no weights or rejections of single tokens, with which the pieces no longer add up
    to a square. Nothing is exponentiated, so S may be of any size: it is the very answer that has moved far that must
    be pulled back.
    """
    ratio = log_ratio(logp, logp_prox.detach(), mask)
    moved = ratio.sum(dim=-1, keepdim=True)
    weight = masked(advantages, mask).to(logp.dtype)
    return masked(0.5 * tau * moved * ratio - weight * masked(logp, mask), mask), {}
