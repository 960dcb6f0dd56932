# ruff: noqa: ARG001  (one signature for all)
"""Corrections for tokens that another policy sampled: a weight and a mask for each. Pure functions.

μ is what really drew the token: another engine's arithmetic, perhaps with older weights. All functions share
one signature and work on [rows, window], a row being one whole answer; nothing here carries a gradient. Masked
tokens, whatever they hold, and tokens that are left out weigh 1, so that an infinite weight never meets a zero.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from penstock.learner.algorithms.objectives import Facts, log_ratio, row_mean
from penstock.learner.algorithms.ranges import rows_within_range

CLIPPED, MASKED = "rollout_corr/clipfrac", "rollout_corr/masked"


class TrustRegion(NamedTuple):
    """What a correction makes of every token; tokens that are left out stay in the denominators."""

    weights: Float[Tensor, "rows window"]
    keep: Bool[Tensor, "rows window"]


def importance_weights(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
) -> Float[Tensor, "rows window"]:
    """π_prox/μ where `mask`, 1 elsewhere; detached. Infinite where the ratio leaves the range of floats."""
    return log_ratio(logp_prox.detach(), logp_sampler.detach(), mask).exp()


def uncorrected(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
) -> tuple[TrustRegion, Facts]:
    """Weight 1 for every token that counts."""
    return TrustRegion(torch.ones_like(logp_prox), mask), {}


def truncated_is(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    max_weight: float,
) -> tuple[TrustRegion, Facts]:
    """min(π_prox/μ, max_weight) per token (truncated importance sampling; Ionides 2008, IMPALA's ρ in 1802.01561).

    Token-level weights leave the distribution of states uncorrected: off-policy they are a first-order
    surrogate, biased even without a cap.
    """
    weights = importance_weights(logp_prox, logp_sampler, mask)
    facts = {CLIPPED: (weights > max_weight).float()}
    return TrustRegion(weights.clamp(max=max_weight), mask), facts


def masked_is(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    min_weight: float,
    max_weight: float,
) -> tuple[TrustRegion, Facts]:
    """w = π_prox/μ where min_weight ≤ w ≤ max_weight, left out elsewhere, per token (IcePop, arXiv 2510.18855).

    Biased as `truncated_is` is, and besides by what is left out on either side.
    """
    weights = importance_weights(logp_prox, logp_sampler, mask)
    return _without(weights, mask, (weights < min_weight) | (weights > max_weight))


def decoupled(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    max_weight: float | None,
) -> tuple[TrustRegion, Facts]:
    """π_prox/μ per token, uncut, for an objective that clips π/π_prox (decoupled PPO, arXiv 2110.00641, eq. 6; for
    language models AReaL, arXiv 2505.24298, eq. 5). Tokens with a weight above `max_weight`, if given, are left out.

    Before the first update of a step, π being π_prox, this is the token-level importance weight: biased by the
    distribution of states, and by nothing else while there is no bound.
    """
    weights = importance_weights(logp_prox, logp_sampler, mask)
    return _without(weights, mask, weights > (torch.inf if max_weight is None else max_weight))


def sequence_is(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    aggregate: Literal["product", "geometric_mean"],
    beyond: Literal["mask", "clip"],
    max_weight: float,
) -> tuple[TrustRegion, Facts]:
    """One weight per answer, exp(Σ_t log π_prox/μ) or exp(mean_t log π_prox/μ) over its tokens that count, the same for
    each of them; above `max_weight` it is cut there (`clip`) or the answer is left out (`mask`).

    The product is the importance weight of the whole answer: unbiased without the bound when every action of the
    answer counts, with a variance that grows exponentially with length. The geometric mean does not grow, and is
    biased at any length above one. An answer whose log-weight leaves ±80 is masked and counted as out of range.
    """
    ratios = log_ratio(logp_prox.detach(), logp_sampler.detach(), mask)
    whole = ratios.sum(dim=-1, keepdim=True) if aggregate == "product" else row_mean(ratios, mask)
    inside, outside = rows_within_range(mask, whole)
    weights = torch.where(inside, whole, whole.new_zeros(())).exp()
    if beyond == "mask":
        trust, facts = _without(weights, inside, weights > max_weight)
        return trust, outside | facts
    return TrustRegion(weights.clamp(max=max_weight), inside), outside | {CLIPPED: (weights > max_weight).float()}


def _without(weights: Tensor, mask: Tensor, beyond: Tensor) -> tuple[TrustRegion, Facts]:
    """What lies `beyond` left out. By what is beyond and not by what is within, so that NaN is not left out."""
    left_out = mask & beyond
    return TrustRegion(weights.masked_fill(left_out, 1.0), mask & ~left_out), {MASKED: left_out.float()}
