"""Estimators of KL(π‖π_ref) from tokens that π sampled (Schulman, "Approximating KL divergence", 2020).

Each takes log-probs of the same tokens under π (`logp`) and π_ref (`logp_reference`), and gives one value per
token, in nats. With x = log π_ref − log π:  k1 = −x,  k2 = x²/2,  k3 = eˣ − 1 − x.

All are biased, in value and gradient, when the tokens came from another policy than π and are not weighted.

As losses they are right at most at every prefix, prefixes held fixed: that a choice leads to prefixes where the
policies differ more is seen only by k1 in the reward (docs/exact-gradients.md).
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor


def k1(logp: Float[Tensor, "*batch"], logp_reference: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Unbiased, high variance, negative for half of the tokens. As a loss its expected gradient is zero."""
    return logp - logp_reference


def k2(logp: Float[Tensor, "*batch"], logp_reference: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Biased value; as a loss its expected gradient is that of KL(π‖π_ref)."""
    return 0.5 * (logp_reference - logp).square()


def k3(logp: Float[Tensor, "*batch"], logp_reference: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Unbiased, low variance, never negative; as a loss its expected gradient is that of KL(π_ref‖π)."""
    x = logp_reference - logp
    return x.expm1() - x


def unbiased(
    logp: Float[Tensor, "*batch"], logp_reference: Float[Tensor, "*batch"], logp_sampler: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """(π/μ)·k3 (DeepSeek-V3.2, arXiv 2512.02556). Unbiased value and gradient also when μ sampled the tokens: the
    ratio carries gradient."""
    return (logp - logp_sampler).exp() * k3(logp, logp_reference)


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
PENALTIES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "k2": lambda logp, logp_reference, _sampler: k2(logp, logp_reference),
    "k3": lambda logp, logp_reference, _sampler: k3(logp, logp_reference),
    "unbiased": unbiased,
}
"""Penalties for the loss: (logp, logp_reference, logp_sampler) → one value per token."""
