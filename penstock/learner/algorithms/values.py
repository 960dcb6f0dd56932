"""What a value model is trained on, and how good it is. Pure functions of [rows, window] tensors."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from penstock.learner.algorithms.objectives import Facts, masked


def value_loss(
    values: Float[Tensor, "rows window"],
    old_values: Float[Tensor, "rows window"],
    returns: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    clip: float | None,
) -> tuple[Float[Tensor, "rows window"], Facts]:
    """max((V − Ĝ)², (V_old + clip(V − V_old, ±clip) − Ĝ)²)/2 (the value loss that comes with PPO, as in OpenAI
    baselines; Ĝ = A_GAE + V_old, detached). 0 outside of the mask, where anything may stand.

    A value counts as clipped only where it left the interval and the clipped branch is the larger one, so that its
    gradient is cut.
    """
    new, old, goal = (masked(x, mask).to(values.dtype) for x in (values, old_values.detach(), returns.detach()))
    plain = (new - goal).square()
    facts: Facts = {"critic/error": plain.detach() / 2}
    if clip is None:
        return plain / 2, facts
    moved = new - old
    clipped = (old + moved.clamp(-clip, clip) - goal).square()
    facts["critic/clipfrac"] = ((moved.abs() > clip) & (clipped > plain)).float()
    return plain.maximum(clipped) / 2, facts


def error_sums(
    values: Float[Tensor, "rows window"], returns: Float[Tensor, "rows window"], mask: Bool[Tensor, "rows window"]
) -> Float[Tensor, " sums"]:
    """n, Σe, Σe², ΣG, ΣG² over the tokens that count, in doubles, for returns G and errors e = G − V; to be added up
    over micro-batches and ranks, and given to `explained_variance`."""
    goal = masked(returns.detach().double(), mask)
    error = goal - masked(values.detach().double(), mask)
    return torch.stack([mask.sum().double(), error.sum(), error.square().sum(), goal.sum(), goal.square().sum()])


def explained_variance(
    count: float, error_sum: float, error_squares: float, return_sum: float, return_squares: float
) -> float:
    """1 − Var(G − V)/Var(G), from the sums of `error_sums`: 1 for a perfect model, 0 for one that is as good as a
    constant, negative for worse. NaN where the returns do not vary beyond the rounding of their sums."""
    if count == 0:
        return math.nan
    of_returns = return_squares / count - (return_sum / count) ** 2
    if of_returns <= 1e-12 * return_squares / count:
        return math.nan
    return 1 - (error_squares / count - (error_sum / count) ** 2) / of_returns
