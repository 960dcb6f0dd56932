"""The cells of an algorithm's row that make up its loss: objective, trust, rejection, KL, reduction.

Every function behind an objective, a trust or a rejection starts with the same five arguments; see `bound`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from penstock.learner.algorithms.cells import HERE, Cell
from penstock.services.settings import Section, on_resume

# --- adaptive coefficients ------------------------------------------------------------------------


class Fixed(Cell):
    """The coefficient stays what it is."""

    function = f"{HERE}.controllers:fixed"
    kind: Literal["fixed"] = "fixed"


class Moving(Cell):
    """A coefficient that follows a measured KL, between two bounds."""

    target: float = Field(gt=0, le=100)
    """KL per token that is aimed at, in nats."""
    min_coefficient: float = Field(1e-6, gt=0, le=1000)
    """It falls no further, so that it is back within a few steps once the KL grows. Above 0, which never grows."""
    max_coefficient: float = Field(1000.0, gt=0, le=1e6)
    """It rises no further: a penalty that dwarfs every advantage leaves nothing else to learn."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_coefficient > self.max_coefficient:
            raise ValueError(
                f"min_coefficient ({self.min_coefficient}) exceeds max_coefficient ({self.max_coefficient})"
            )
        return self


class Doubling(Moving):
    """PPO's rule: doubled when the step's KL exceeds 1.5 times the target, halved when below the target over 1.5."""

    function = f"{HERE}.controllers:doubling"
    kind: Literal["doubling"] = "doubling"


class Proportional(Moving):
    """Ziegler et al.'s rule: changed in proportion to the relative error, which is cut at ±20 %."""

    function = f"{HERE}.controllers:proportional"
    kind: Literal["proportional"] = "proportional"
    gain: float = Field(0.1, gt=0, le=1)
    """Relative change of the coefficient per step and unit of relative error."""


Controller = Annotated[Fixed | Doubling | Proportional, Field(discriminator="kind")]
"""Functions `(coefficient, measured) -> coefficient`, called after every train step."""

# --- objectives -----------------------------------------------------------------------------------


class ObjectiveCell(Cell):
    """Loss of a token: `(logp, logp_prox, logp_sampler, advantages, mask, **coefficients)`, all [rows, window], to
    (loss [rows, window], facts)."""

    ratio: ClassVar[Literal["none", "prox", "sampler"]] = "prox"
    """What the policy is compared with: nothing, the start of the step (π/π_prox), or what drew the token (π/μ)."""
    ratio_of: ClassVar[Literal["token", "answer"]] = "token"
    """Whether every token has a ratio of its own, or the answer has one for all of them."""
    whole: ClassVar[bool] = False
    """Whether it means anything only while all tokens of an answer are kept with one and the same weight."""
    reductions: ClassVar[tuple[str, ...]] = ()
    """Reductions with which it is the loss it is named after; none for any."""
    reductions_only: ClassVar[str] = ""
    """Why no other reduction makes sense; empty where another is only another loss."""
    with_one_update: ClassVar[str] = ""
    """What becomes of it in a step of a single update, where π is π_prox; empty where nothing is lost."""


class PolicyGradient(ObjectiveCell):
    """The plain score-function estimator −A log π."""

    function = f"{HERE}.objectives:policy_gradient"
    ratio = "none"
    kind: Literal["policy_gradient"] = "policy_gradient"


class PPOClip(ObjectiveCell):
    """PPO's clipped surrogate, with separate bounds below and above."""

    function = f"{HERE}.objectives:ppo_clip"
    kind: Literal["ppo_clip"] = "ppo_clip"
    clip_low: float = Field(0.2, gt=0, le=1)
    """The ratio is clipped at 1 − clip_low; at most 1, since a ratio is never negative."""
    clip_high: float = Field(0.2, gt=0, le=10)
    """The ratio is clipped at 1 + clip_high."""
    dual_clip: float | None = Field(None, gt=1, le=1000)
    """For negative advantages the loss is cut at so many times −A; 3 in the paper. Above 1, or on-policy tokens
    would be cut."""


class PPOKL(ObjectiveCell):
    """PPO without a clip: the ratio, and a penalty on KL(π_prox‖π) whose coefficient adapts."""

    function = f"{HERE}.objectives:ppo_kl"
    own = frozenset({"kind", "controller"})
    with_one_update = "its penalty is 0, whatever its coefficient"
    kind: Literal["ppo_kl"] = "ppo_kl"
    coefficient: float = Field(1.0, ge=0, le=1000)
    """β that the run begins with."""
    controller: Controller = Doubling(target=0.01)
    """How β moves, by KL(π_prox‖π) after the step's last update (kl/step), which takes one more forward pass."""


class GSPO(ObjectiveCell):
    """The clipped surrogate of one ratio per answer: the geometric mean of its tokens' ratios."""

    function = f"{HERE}.objectives:gspo"
    ratio_of = "answer"
    reductions = ("sequence_mean",)
    kind: Literal["gspo"] = "gspo"
    clip_low: float = Field(3e-4, gt=0, le=1)
    """The answer's ratio is clipped at 1 − clip_low. A mean over tokens moves little: 0.2 would never clip."""
    clip_high: float = Field(4e-4, gt=0, le=10)
    """The answer's ratio is clipped at 1 + clip_high."""


class CISPO(ObjectiveCell):
    """The policy gradient weighted by the clipped ratio to the sampler; clipping never cuts the gradient."""

    function = f"{HERE}.objectives:cispo"
    ratio = "sampler"
    kind: Literal["cispo"] = "cispo"
    max_weight: float = Field(5.0, ge=1, le=1000)
    """Largest ratio π/μ, absolute and not 1 + ε. There is no lower bound."""


class MirrorDescent(ObjectiveCell):
    """Kimi k1.5: policy mirror descent on whole answers, with the squared log-ratio as regulariser."""

    function = f"{HERE}.objectives:mirror_descent"
    ratio_of = "answer"
    whole = True
    reductions = ("sequence_sum", "fixed_length")
    reductions_only = "the loss is of the whole answer, and a mean over tokens would change τ with its length"
    with_one_update = "its regulariser is 0, which leaves a plain policy gradient"
    kind: Literal["mirror_descent"] = "mirror_descent"
    tau: float = Field(0.1, gt=0, le=100)
    """Weight of the regulariser (τ/2)·(log π(y)/π_prox(y))²."""


Objective = Annotated[
    PolicyGradient | PPOClip | PPOKL | GSPO | CISPO | MirrorDescent,
    Field(discriminator="kind"),
]

# --- trust: weights against the sampler -----------------------------------------------------------


class TrustCell(Cell):
    """Weight and mask of a token that another policy sampled: `(logp_prox, logp_sampler, advantages, mask,
    **coefficients)`, all [rows, window], to (TrustRegion, facts)."""

    weighs: ClassVar[bool] = True
    """Whether weights may differ from 1."""
    weight_of: ClassVar[Literal["token", "answer"]] = "token"
    """Whether every token has a weight of its own, or the answer has one for all of them."""

    @property
    def bounded(self) -> bool:
        """Whether a weight cannot grow beyond all bounds."""
        return True

    def with_one_update(self) -> str:
        """What becomes of it in a step of a single update; empty where nothing is lost."""
        return ""


class Uncorrected(TrustCell):
    """Weight 1 everywhere; the diagnostics are reported all the same."""

    function = f"{HERE}.corrections:uncorrected"
    weighs = False
    kind: Literal["none"] = "none"


class TruncatedIS(TrustCell):
    """Every token weighted by min(π_prox/μ, max_weight)."""

    function = f"{HERE}.corrections:truncated_is"
    kind: Literal["truncated_is"] = "truncated_is"
    max_weight: float = Field(2.0, ge=1, le=1000)
    """Largest weight of a token, absolute. Below 1 even on-policy tokens would lose weight."""


class MaskedIS(TrustCell):
    """IcePop: weighted by π_prox/μ within the bounds, left out beyond them."""

    function = f"{HERE}.corrections:masked_is"
    kind: Literal["masked_is"] = "masked_is"
    min_weight: float = Field(0.5, ge=0, le=1)
    """α: tokens with a smaller weight are left out."""
    max_weight: float = Field(5.0, ge=1, le=1000)
    """β: tokens with a larger weight are left out."""


class SequenceIS(TrustCell):
    """One weight per answer, from the product of its tokens' ratios, or from their geometric mean."""

    function = f"{HERE}.corrections:sequence_is"
    weight_of = "answer"
    kind: Literal["sequence_is"] = "sequence_is"
    aggregate: Literal["product", "geometric_mean"] = "product"
    """`product` is the right weight of a whole answer and grows with its length; `geometric_mean` does not grow and
    is biased."""
    beyond: Literal["mask", "clip"] = "clip"
    """What happens to an answer whose weight exceeds max_weight: left out, or weighted by max_weight."""
    max_weight: float = Field(3.0, ge=1, le=1000)
    """Largest weight of an answer, absolute."""


class Decoupled(TrustCell):
    """Decoupled PPO: weighted by π_prox/μ, while the objective clips π/π_prox; π_prox is recomputed once per step."""

    function = f"{HERE}.corrections:decoupled"
    kind: Literal["decoupled"] = "decoupled"
    max_weight: float | None = Field(None, ge=1, le=1000)
    """Tokens with a larger weight are left out; null for no bound, as in the paper."""

    @property
    def bounded(self) -> bool:
        return self.max_weight is not None

    def with_one_update(self) -> str:
        return "what is left is importance sampling without a bound" if self.max_weight is None else ""


Trust = Annotated[
    Uncorrected | TruncatedIS | MaskedIS | SequenceIS | Decoupled,
    Field(discriminator="kind"),
]

# --- rejection: masks against the sampler ---------------------------------------------------------


class Rejection(Cell):
    """Which tokens are left out besides those that the trust cell leaves out: `(logp_prox, logp_sampler, advantages,
    mask, bound, **coefficients)`, all [rows, window], to (keep, facts)."""

    rejects: ClassVar[bool] = True
    """Whether anything may be left out."""
    rejects_of: ClassVar[Literal["token", "answer"]] = "token"
    """Whether tokens are left out by themselves, or those of an answer together."""

    def bind_bound(self) -> Callable[..., float] | None:
        """The function of the whole batch's log-ratios that gives the bound; None where there is none."""
        return None


class KeepAll(Rejection):
    """Nothing is rejected besides what the trust cell leaves out."""

    function = f"{HERE}.rejections:keep_all"
    rejects = False
    kind: Literal["none"] = "none"


class OffPolicySequence(Rejection):
    """DeepSeek-V3.2: an answer with a negative advantage is left out when the sampler was too far from the policy."""

    function = f"{HERE}.rejections:off_policy_sequence"
    rejects_of = "answer"
    kind: Literal["off_policy_sequence"] = "off_policy_sequence"
    max_divergence: float = Field(0.1, gt=0, le=100)
    """δ: mean over the answer's tokens of log(μ/π_prox), in nats."""


class SecondMoment(Rejection):
    """M2PO: the fewest tokens are left out that bring the mean squared log-ratio of the batch under the bound."""

    function = f"{HERE}.rejections:second_moment"
    own = frozenset({"kind", "max_moment"})
    kind: Literal["second_moment"] = "second_moment"
    max_moment: float = Field(0.04, gt=0, le=100)
    """τ: largest mean of (log π_prox/μ)² over the batch, on all ranks together."""

    def bind_bound(self) -> Callable[..., float]:
        """(log-ratios [tokens]) → bound on the square of one."""
        module = importlib.import_module(f"{HERE}.rejections")
        return functools.partial(module.second_moment_bound, max_moment=self.max_moment)


Reject = Annotated[KeepAll | OffPolicySequence | SecondMoment, Field(discriminator="kind")]

# --- KL, reduction --------------------------------------------------------------------------------


class KL(Section):
    """Penalty for leaving the frozen reference policy."""

    coefficient: float = Field(0.0, ge=0, le=100)
    """β that the run begins with. With 0 no reference model is used."""
    estimator: Literal["k1", "k2", "k3", "unbiased"] = "k3"
    """Of KL(π‖π_ref), from sampled tokens. k1 has no gradient in expectation and so fits the reward only; unbiased is
    DeepSeek-V3.2's (π/μ)·k3."""
    placement: Literal["loss", "reward"] = "loss"
    """`loss` adds β·estimator to every token's loss; `reward` takes β·log(μ/π_ref) off every token's reward. That is
    the KL of what sampled the token, not of the policy: biased as far as the two differ."""
    controller: Controller = Fixed()
    """How β moves, by the step's kl/reference."""

    @model_validator(mode="after")
    def _fits(self) -> KL:
        if self.placement == "loss" and self.estimator == "k1" and self.coefficient > 0:
            raise ValueError("k1 in the loss has an expected gradient of zero; use k2 or k3, or placement: reward")
        if self.placement == "reward" and self.estimator != "k1" and self.coefficient > 0:
            raise ValueError(f"the reward takes the estimator k1, found {self.estimator}; or use placement: loss")
        if self.controller.kind != "fixed" and self.coefficient == 0:
            raise ValueError("a controller multiplies the coefficient, and it is 0: give the one to begin with")
        return self


class Reduction(Section):
    """How the losses of tokens become one number. Denominators are of the whole mini-batch, over all ranks."""

    kind: Literal["token_mean", "group_token_mean", "sequence_mean", "fixed_length", "sequence_sum"] = "sequence_mean"
    """token_mean: over all tokens. group_token_mean: within a prompt's group, then over groups. sequence_mean:
    within an answer, then over answers. fixed_length: sum over (answers × budget). sequence_sum: sum over answers."""
    budget: int | None = on_resume(None, ge=1)
    """Tokens that every answer is taken to have, for fixed_length; left out, it is rollout.sampling.max_tokens."""

    @model_validator(mode="after")
    def _fits(self) -> Reduction:
        if self.kind != "fixed_length" and self.budget is not None:
            raise ValueError("budget belongs to kind: fixed_length, and to that kind only")
        return self
