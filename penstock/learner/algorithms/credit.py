"""Credit: which part of an answer's reward each of its tokens answers for. Pure functions.

Two families. Without values, one answer at a time: rewards [T] and actions [T] of its T tokens and the advantage
that its baseline gave it. With values, on padded rows [rows, window]; those return advantages and the returns that
the value model is to predict.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_DOUBLE = torch.float64


def token_rewards(
    outcome: float,
    actions: Bool[Tensor, " tokens"],
    steps: Sequence[tuple[int, float]] = (),
) -> Float[Tensor, " tokens"]:
    """What falls to each token of an answer: the outcome at its last action, and r_k = s_k − s_(k−1) (with s_0 = 0) at
    the last token of every step k, which `steps` gives as (token, s_k) by rising token. float64. An answer without
    actions gets zeros."""
    rewards = actions.new_zeros(actions.shape, dtype=_DOUBLE)
    if not bool(actions.any()):
        return rewards
    rewards[int(actions.nonzero()[-1])] += outcome
    before = 0.0
    for token, score in steps:
        rewards[token] += score - before
        before = score
    return rewards


def outcome(
    rewards: Float[Tensor, " tokens"], actions: Bool[Tensor, " tokens"], advantage: float
) -> Float[Tensor, " tokens"]:
    """The answer's advantage at every action, 0 elsewhere."""
    return actions.to(rewards.dtype) * advantage


def discounted_return(
    rewards: Float[Tensor, " tokens"], actions: Bool[Tensor, " tokens"], advantage: float, gamma: float
) -> Float[Tensor, " tokens"]:
    """A_t = Σ_k γ^k R_{t+k} − b at every action, 0 elsewhere; b = Σ R − advantage is the answer's baseline.

    Time runs over actions: tokens that a tool or the environment wrote are no steps of the policy, and what falls to
    them counts for the last action before them.
    """
    total = rewards.sum()
    found = rewards.new_zeros(rewards.shape)
    following = rewards.new_zeros(())
    for t in range(len(rewards) - 1, -1, -1):
        if actions[t]:
            following = rewards[t] + gamma * following
            found[t] = following - (total - advantage)
        else:
            # Not a step in time: neither discounted nor lost.
            following = following + rewards[t] / gamma
    return found
