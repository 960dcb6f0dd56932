"""Credit: which part of an answer's reward each of its tokens answers for. Pure functions.

Two families. Without values, one answer at a time: rewards [T] and actions [T] of its T tokens and the advantage
that its baseline gave it. With values, on padded rows [rows, window]; those return advantages and the returns that
the value model is to predict.

Time runs over the tokens that count. Those that a tool or the environment wrote are no steps of the policy: they are
skipped, and what falls to them counts, undiscounted, for the last token before them that counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from penstock.learner.algorithms.objectives import log_ratio

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
    places = actions.nonzero()
    if not len(places):
        return rewards
    rewards[int(places[-1])] += outcome
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

    R are the rewards from the first action on: what falls to earlier tokens is nobody's doing, and in no return.
    Unbiased as long as b depends on nothing that the answer did.
    """
    # Plain numbers: of one answer at a time, tensors cost more to call than the sums take.
    values, counts, found = rewards.tolist(), actions.tolist(), [0.0] * len(rewards)
    first = counts.index(True) if any(counts) else len(counts)
    baseline = sum(values[first:]) - advantage
    following = falling = 0.0
    for t in range(len(values) - 1, -1, -1):
        falling += values[t]
        if counts[t]:
            following, falling = falling + gamma * following, 0.0
            found[t] = following - baseline
    return torch.tensor(found, dtype=rewards.dtype, device=rewards.device)


def gae(
    rewards: Float[Tensor, "rows window"],
    values: Float[Tensor, "rows window"],
    last_values: Float[Tensor, " rows"],
    logp_prox: Float[Tensor, "rows window"],  # noqa: ARG001  (one signature for both)
    logp_sampler: Float[Tensor, "rows window"],  # noqa: ARG001
    mask: Bool[Tensor, "rows window"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "rows window"], Float[Tensor, "rows window"]]:
    """A_t = δ_t + γλ A_{t+1} with δ_t = R_t + γ V_{t+1} − V_t, and the returns A + V (GAE, arXiv 1506.02438, eq. 11
    and 16).

    `values` are V before each token, of the model at the start of the step; `last_values` what follows an answer's
    last token: 0 where it ended, V of its last state where it was cut and is taken to go on. Only an answer cut at its
    token budget may be; one cut as stale counts as ended. Masked values may hold anything; rewards on masked tokens
    count. Both results are 0 outside of the mask and carry no gradient. λ = 1 is unbiased with any V, λ < 1 as far as
    V is right.
    """
    held, following = _values(values, last_values, mask)
    deltas = _at_actions(rewards, mask) + gamma * following - held
    advantages = _backwards(deltas, torch.full_like(held, gamma * lam), mask)
    return advantages.to(values.dtype), torch.where(mask, advantages + held, 0.0).to(values.dtype)


def vtrace(
    rewards: Float[Tensor, "rows window"],
    values: Float[Tensor, "rows window"],
    last_values: Float[Tensor, " rows"],
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    gamma: float,
    lam: float,
    max_rho: float,
    max_c: float,
) -> tuple[Float[Tensor, "rows window"], Float[Tensor, "rows window"]]:
    """Returns v_s = V_s + ρ_s δ_s + γ c_s (v_{s+1} − V_{s+1}) and advantages ρ_s (R_s + γ v_{s+1} − V_s), with
    δ_s = R_s + γ V_{s+1} − V_s, ρ = min(max_rho, π/μ) and c = λ min(max_c, π/μ) (V-trace, IMPALA, arXiv 1802.01561,
    eq. 1, §4.2 and remark 2).

    π is the policy at the start of the step. The advantages contain ρ, so nothing else may weigh them. The values
    are those of a policy between μ and π, which max_rho decides: π itself only without that bound. Masks, ends and
    gradients as in `gae`; with π = μ, λ = 1 and bounds of 1 or more the returns are GAE's at λ = 1.
    """
    held, following = _values(values, last_values, mask)
    fallen = _at_actions(rewards, mask)
    ratio = log_ratio(logp_prox.detach().double(), logp_sampler.detach(), mask).exp()
    rho, trace = ratio.clamp(max=max_rho), lam * ratio.clamp(max=max_c)
    corrected = held + _backwards(rho * (fallen + gamma * following - held), gamma * trace, mask)
    _, corrected_following = _values(corrected, last_values, mask)
    advantages = rho * (fallen + gamma * corrected_following - held)
    return tuple(torch.where(mask, found, 0.0).to(values.dtype) for found in (advantages, corrected))  # type: ignore[return-value]


def _values(values: Tensor, last_values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Doubles [rows, window]: the values where they count and 0 elsewhere, and at every token the value at the next
    one that counts, or that of the end."""
    window = mask.shape[-1]
    held = torch.where(mask, values.detach(), values.new_zeros(())).double()
    places = torch.arange(window, device=mask.device).expand_as(mask)
    here_or_after = torch.where(mask, places, window).flip(-1).cummin(-1).values.flip(-1)
    after = torch.cat([here_or_after[:, 1:], torch.full_like(here_or_after[:, :1], window)], -1)
    return held, torch.cat([held, last_values.detach().double().unsqueeze(-1)], -1).gather(-1, after)


def _at_actions(rewards: Tensor, mask: Tensor) -> Tensor:
    """Doubles [rows, window]: what falls to a token that counts and to those after it that do not. What falls to the
    tokens before the first that counts is nobody's doing, and is left out."""
    places = torch.arange(1, mask.shape[-1] + 1, device=mask.device).expand_as(mask)
    owner = torch.where(mask, places, 0).cummax(-1).values
    found = torch.zeros(mask.shape[0], mask.shape[1] + 1, dtype=_DOUBLE, device=mask.device)
    return found.scatter_add_(-1, owner, rewards.detach().double())[:, 1:]


def _backwards(pieces: Tensor, factors: Tensor, mask: Tensor) -> Tensor:
    """y_t = pieces_t + factors_t · y_(the next that counts) where `mask`, 0 elsewhere.

    By doubling: after k rounds a token holds what the next 2^k tokens add to it, and the factor for what lies beyond.
    So a window of 8192 takes 13 operations on whole tensors and not 8192 small ones.
    """
    found = torch.where(mask, pieces, 0.0)
    factors = torch.where(mask, factors, 1.0)  # a skipped token hands on what it gets
    step = 1
    while step < mask.shape[-1]:
        beyond = torch.nn.functional.pad(found[:, step:], (0, step))
        found = found + factors * beyond
        factors = factors * torch.nn.functional.pad(factors[:, step:], (0, step))
        step *= 2
    return torch.where(mask, found, 0.0)
