# ruff: noqa: ARG001  (one signature for all)
"""Which tokens are left out because the sampler was too far from the policy. Pure functions, no gradients.

All share one signature and work on [rows, window], a row being one whole answer; what they reject stays in the
denominators. Each rejects what is beyond its bound and not what fails to be within it, so that NaN is never hidden.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from penstock.learner.algorithms.objectives import Facts, log_ratio, row_mean

REJECTED = "rollout_corr/rejected"


def keep_all(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    bound: float,
) -> tuple[Bool[Tensor, "rows window"], Facts]:
    """Every token that counts."""
    return mask, {}


def off_policy_sequence(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    bound: float,
    max_divergence: float,
) -> tuple[Bool[Tensor, "rows window"], Facts]:
    """Without the tokens of negative advantage in answers with mean_t log(μ/π_prox) > max_divergence, the mean being
    over the answer's tokens that count (DeepSeek-V3.2, arXiv 2512.02556, §3.1, off-policy sequence masking).

    The paper measures against the policy being optimised; here it is the one at the start of the step, so that all
    updates of a step reject the same, and before the first update the two are one. Biased: what is rejected would have
    pushed the policy away from answers that it hardly gives any more.
    """
    divergence = row_mean(log_ratio(logp_sampler.detach(), logp_prox.detach(), mask), mask)
    rejected = mask & (advantages < 0) & (divergence > max_divergence)
    return mask & ~rejected, {REJECTED: rejected.float()}


def second_moment(
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    bound: float,
) -> tuple[Bool[Tensor, "rows window"], Facts]:
    """Tokens whose (log π_prox/μ)² is within the bound that `second_moment_bound` gave for the whole batch (M2PO,
    arXiv 2510.01161). Biased by what is left out.

    The paper measures the policy being optimised, at every update; this is measured at the start of the step, as the
    bound is, and in doubles, as it is: rounded otherwise, a square next to the bound would fall on its other side.
    """
    apart = log_ratio(logp_prox.detach().double(), logp_sampler.detach().double(), mask)
    rejected = mask & (apart.square() > bound)
    return mask & ~rejected, {REJECTED: rejected.float()}


def second_moment_bound(log_ratios: Float[Tensor, " tokens"], max_moment: float) -> float:
    """The bound on (log π_prox/μ)² that leaves out the fewest tokens such that its mean over the others is at most
    `max_moment` (M2PO, arXiv 2510.01161). `log_ratios` are of all tokens that count, in the batch, on all ranks.

    Since the mean of the smallest k grows with k, the fewest are the largest. The bound lies midway between what is
    kept and what is not, so that rounding cannot move a token across. Equal squares go together. Infinity where
    nothing is to be left out, and where a log-ratio is NaN: the update is then skipped for that.
    """
    squares = log_ratios.detach().double().square().sort().values
    if squares.numel() == 0 or bool(squares.isnan().any()):
        return torch.inf
    means = squares.cumsum(0) / torch.arange(1, len(squares) + 1, device=squares.device)
    beyond = squares[means > max_moment]
    if beyond.numel() == 0:
        return torch.inf
    first = beyond[0]
    kept = squares[squares < first]
    return float((kept[-1] + first) / 2) if kept.numel() else 0.0
