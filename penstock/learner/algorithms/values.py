"""What a value model is trained on, and how good it is. Pure functions of [rows, window] tensors."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from penstock.learner.algorithms.objectives import Facts


def value_loss(
    values: Float[Tensor, "rows window"],
    old_values: Float[Tensor, "rows window"],
    returns: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    clip: float | None,
) -> tuple[Float[Tensor, "rows window"], Facts]:
    """max((V − Ĝ)², (V_old + clip(V − V_old, ±clip) − Ĝ)²)/2 (the value loss that comes with PPO, as in OpenAI
    baselines; Ĝ = A_GAE + V_old, detached). 0 outside of the mask."""
    zero = values.new_zeros(())
    new, old, goal = (x.where(mask, zero) for x in (values, old_values.detach(), returns.detach()))
    plain = (new - goal).square()
    facts: Facts = {"critic/error": plain.detach() / 2}
    if clip is None:
        return plain / 2, facts
    held = old + (new - old).clamp(-clip, clip)
    clipped = (held - goal).square()
    facts["critic/clipfrac"] = (clipped > plain).float()
    return plain.maximum(clipped) / 2, facts
