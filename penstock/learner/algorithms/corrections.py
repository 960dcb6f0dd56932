# ruff: noqa: ARG001  (one signature for all)
"""Corrections for tokens that another policy sampled: a weight and a mask for each. Pure functions.

μ is what really drew the token: another engine's arithmetic, perhaps with older weights. All functions share
one signature and work on [rows, window]; nothing here carries a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from penstock.learner.algorithms.objectives import Facts, log_ratio


class TrustRegion(NamedTuple):
    """What a correction makes of every token; tokens that are rejected stay in the denominators."""

    weights: Float[Tensor, "rows window"]
    keep: Bool[Tensor, "rows window"]


def importance_weights(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
) -> Float[Tensor, "rows window"]:
    """π_prox/μ where `mask`, 1 elsewhere; detached. Infinite where the ratio leaves the range of floats."""
    return log_ratio(logp_prox.detach(), logp_sampler, mask).exp()


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
    facts = {"rollout_corr/clipfrac": (weights > max_weight).float()}
    return TrustRegion(weights.clamp(max=max_weight), mask), facts


def uncorrected(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
) -> tuple[TrustRegion, Facts]:
    """Weight 1 for every token that counts."""
    return TrustRegion(torch.ones_like(logp_prox), mask), {}
