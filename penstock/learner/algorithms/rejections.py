# ruff: noqa: ARG001  (one signature for all)
"""Which tokens are left out because the sampler was too far from the policy. Pure functions, no gradients.

All share one signature and work on [rows, window]; what they reject stays in the denominators.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from penstock.learner.algorithms.objectives import Facts, log_ratio


def keep_all(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    bound: float,
) -> tuple[Bool[Tensor, "rows window"], Facts]:
    """Every token that counts."""
    return mask, {}


def second_moment(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    bound: float,
) -> tuple[Bool[Tensor, "rows window"], Facts]:
    """Tokens whose (log π_prox/μ)² is within the bound that `second_moment_bound` gave for the whole batch (M2PO,
    arXiv 2510.01161)."""
    keep = mask & (log_ratio(logp_prox.detach(), logp_sampler, mask).square() <= bound)
    return keep, {"rollout_corr/rejected": (mask & ~keep).float()}
