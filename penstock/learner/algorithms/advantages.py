# ruff: noqa: ARG001  (one signature for all)
"""Advantages: how much better a response was than expected. Pure functions of one group's rewards.

A group is the set of responses to one prompt. Members that could not be scored take no part in the baseline
and get the advantage 0; the caller also leaves their tokens out of the loss.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
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

    0 for all without signal. The mean contains the member itself, which alone would scale the expected gradient by
    (G − 1)/G; the deviation, which differs from group to group, changes its direction as well.
    """
    if not has_signal(rewards, scored):
        return rewards.new_zeros(rewards.shape)
    counted = rewards[scored]
    centred = (rewards - counted.mean()) / (counted.std(correction=1) + eps)
    return centred.where(scored, rewards.new_zeros(()))


def leave_one_out(rewards: Float[Tensor, " members"], scored: Bool[Tensor, " members"]) -> Float[Tensor, " members"]:
    """A_i = R_i − mean of the other scored members' rewards (RLOO, arXiv 2402.14740, eq. 6). 0 without signal.

    Unbiased: the baseline of a member depends on nothing that the member did. Needs two scored members.
    """
    if not has_signal(rewards, scored):
        return rewards.new_zeros(rewards.shape)
    count = int(scored.sum())
    centred = (rewards - rewards[scored].mean()) * count / (count - 1)
    return centred.where(scored, rewards.new_zeros(()))


def no_baseline(
    rewards: Float[Tensor, " answers"], groups: Int[Tensor, " answers"], scored: Bool[Tensor, " answers"]
) -> Float[Tensor, " answers"]:
    """A_i = R_i (REINFORCE; Williams 1992)."""
    return rewards.where(scored, rewards.new_zeros(()))


def others_mean(
    rewards: Float[Tensor, " answers"], groups: Int[Tensor, " answers"], scored: Bool[Tensor, " answers"]
) -> Float[Tensor, " answers"]:
    """A_i = R_i − mean reward of the scored answers to the batch's other prompts; R_i where there is no other prompt.

    Unbiased: prompts are drawn independently of each other, so the baseline depends on nothing that answer i did.
    """
    found = rewards.new_zeros(rewards.shape)
    for group in torch.unique(groups):
        mine, others = groups == group, (groups != group) & scored
        base = rewards[others].mean() if bool(others.any()) else rewards.new_zeros(())
        found[mine] = rewards[mine] - base
    return found.where(scored, rewards.new_zeros(()))


def whiten(
    advantages: Float[Tensor, " answers"], scored: Bool[Tensor, " answers"], eps: float
) -> Float[Tensor, " answers"]:
    """(A − mean)/(std + eps) over the scored answers of the batch, every answer once, std with n − 1 (REINFORCE++,
    arXiv 2501.03262, eq. 8). Unchanged with fewer than two, 0 where all are equal."""
    counted = advantages[scored]
    if counted.numel() < 2:
        return advantages
    centred = (advantages - counted.mean()) / (counted.std(correction=1) + eps)
    centred = centred if bool(counted.max() > counted.min()) else torch.zeros_like(advantages)
    return centred.where(scored, advantages.new_zeros(()))
