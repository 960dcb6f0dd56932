"""The cells of an algorithm's row: which function, with which coefficients. Plain configuration, no tensors.

A cell names its function by import path and hands over its own fields as keyword arguments, so that a run file
is checked without loading anything heavy, and a function never sees a configuration.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from penstock.services.settings import Section

_HERE = "penstock.learner.algorithms"


class Cell(Section):
    """One part of an algorithm."""

    function: ClassVar[str]
    """`module:name` of the pure function behind the cell."""

    def bind(self) -> Callable[..., Any]:
        """The function with this cell's coefficients filled in."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return functools.partial(function, **self.model_dump(exclude={"kind"}))


# --- baselines ------------------------------------------------------------------------------------


class GroupZScore(Cell):
    """GRPO: reward minus the group's mean, over the group's standard deviation."""

    function = f"{_HERE}.advantages:group_zscore"
    kind: Literal["group_zscore"] = "group_zscore"
    eps: float = Field(1e-4, gt=0, le=0.1)
    """Added to the standard deviation. Positive, since a group may be nearly without spread."""


class GroupMean(Cell):
    """Dr. GRPO: reward minus the group's mean, not divided by anything."""

    function = f"{_HERE}.advantages:group_mean"
    kind: Literal["group_mean"] = "group_mean"


Baseline = Annotated[GroupZScore | GroupMean, Field(discriminator="kind")]

# --- objectives -----------------------------------------------------------------------------------


class PPOClip(Cell):
    """PPO's clipped surrogate, with separate bounds below and above."""

    function = f"{_HERE}.objectives:ppo_clip"
    kind: Literal["ppo_clip"] = "ppo_clip"
    clip_low: float = Field(0.2, gt=0, le=1)
    """The ratio is clipped at 1 − clip_low; at most 1, since a ratio is never negative."""
    clip_high: float = Field(0.2, gt=0, le=10)
    """The ratio is clipped at 1 + clip_high."""


class PolicyGradient(Cell):
    """The plain score-function estimator −A log π."""

    function = f"{_HERE}.objectives:policy_gradient"
    kind: Literal["policy_gradient"] = "policy_gradient"


Objective = Annotated[PPOClip | PolicyGradient, Field(discriminator="kind")]

# --- trust: weights and masks against the sampler -------------------------------------------------


class TruncatedIS(Cell):
    """Every token weighted by min(π_prox/μ, max_weight)."""

    function = f"{_HERE}.corrections:truncated_is"
    kind: Literal["truncated_is"] = "truncated_is"
    max_weight: float = Field(2.0, ge=1, le=1000)
    """Largest weight of a token, absolute. Below 1 even on-policy tokens would lose weight."""


class Uncorrected(Cell):
    """Weight 1 everywhere; the diagnostics are reported all the same."""

    function = f"{_HERE}.corrections:uncorrected"
    kind: Literal["none"] = "none"


Trust = Annotated[TruncatedIS | Uncorrected, Field(discriminator="kind")]

# --- KL, reduction --------------------------------------------------------------------------------


class KL(Section):
    """Penalty for leaving the frozen reference policy."""

    coefficient: float = Field(0.0, ge=0, le=100)
    """β. With 0 no reference model is used."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Of KL(π‖π_ref), from sampled tokens. k1 has no gradient in expectation and so fits the reward only."""
    placement: Literal["loss", "reward"] = "loss"
    """`loss` adds β·estimator to every token's loss; `reward` takes β·Σ log(μ/π_ref) off each answer's reward."""

    @model_validator(mode="after")
    def _fits(self) -> KL:
        if self.placement == "loss" and self.estimator == "k1" and self.coefficient > 0:
            raise ValueError("k1 in the loss has an expected gradient of zero; use k2 or k3, or placement: reward")
        if self.placement == "reward" and self.estimator != "k1" and self.coefficient > 0:
            raise ValueError(f"the reward takes the estimator k1, found {self.estimator}; or use placement: loss")
        return self


class Reduction(Section):
    """How the losses of tokens become one number. Denominators are of the whole mini-batch, over all ranks."""

    kind: Literal["token_mean", "group_token_mean", "sequence_mean", "fixed_length", "sequence_sum"] = "sequence_mean"
    """token_mean: over all tokens. group_token_mean: within a prompt's group, then over groups. sequence_mean:
    within an answer, then over answers. fixed_length: sum over (answers × budget). sequence_sum: sum over answers."""
    budget: int | None = Field(None, ge=1)
    """Tokens that every answer is taken to have; only for fixed_length, where it is the configured max_tokens."""

    @model_validator(mode="after")
    def _fits(self) -> Reduction:
        if (self.kind == "fixed_length") != (self.budget is not None):
            raise ValueError("budget belongs to kind: fixed_length, and to that kind only; set it to max_tokens")
        return self
