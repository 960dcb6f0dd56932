"""Advantages: how much better a response was than expected. Pure functions of one group's rewards.

A group is the set of responses to one prompt. Members that could not be scored take no part in the baseline
and get the advantage 0; the caller also leaves their tokens out of the loss.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def has_signal(rewards: Float[Tensor, " members"], scored: Bool[Tensor, " members"]) -> bool:
    """Whether the scored members differ in reward. Without a difference every group baseline gives advantages of 0.

    Decided by max > min, on the task reward before any KL is taken off: a standard deviation of equal floats
    need not come out as 0, and dividing by such noise makes large advantages out of nothing.
    """
    counted = rewards[scored]
    return bool(counted.numel() > 0 and counted.max() > counted.min())


def group_mean(rewards: Float[Tensor, " members"], scored: Bool[Tensor, " members"]) -> Float[Tensor, " members"]:
    """A_i = R_i − mean(R) over the scored members (Dr. GRPO, arXiv 2503.20783, eq. 3). 0 without signal."""
    if not has_signal(rewards, scored):
        return rewards.new_zeros(rewards.shape)
    centred = rewards - rewards[scored].mean()
    return centred.where(scored, rewards.new_zeros(()))


def group_zscore(
    rewards: Float[Tensor, " members"], scored: Bool[Tensor, " members"], eps: float
) -> Float[Tensor, " members"]:
    """A_i = (R_i − mean(R)) / (std(R) + eps) over the scored members, std with n − 1 (GRPO, arXiv 2402.03300, §4.1.2).

    0 for all without signal. In expectation the group's mean contains the member itself, which scales the
    gradient by (G − 1)/G.
    """
    if not has_signal(rewards, scored):
        return rewards.new_zeros(rewards.shape)
    counted = rewards[scored]
    centred = (rewards - counted.mean()) / (counted.std(correction=1) + eps)
    return centred.where(scored, rewards.new_zeros(()))
