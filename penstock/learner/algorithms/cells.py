"""The cells of an algorithm's row that turn rewards into advantages: baseline, whitening, credit, value.

A cell names its function by import path and hands over its own fields as keyword arguments, so that a run file
is checked without loading anything heavy, and a function never sees a configuration. Plain configuration, no
tensors. The cells of the loss are in `loss_cells`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from penstock.services.settings import Section, on_resume

HERE = "penstock.learner.algorithms"


class Cell(Section):
    """One part of an algorithm. One of your own is a subclass with a `function`, and a field per coefficient."""

    function: ClassVar[str]
    """`module:name` of the pure function behind the cell."""
    own: ClassVar[frozenset[str]] = frozenset({"kind"})
    """Fields that are not the function's."""
    kind: str = "own"
    """What the cell is called in a run file."""

    def bind(self) -> Callable[..., Any]:
        """The function with this cell's coefficients filled in."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return functools.partial(function, **self.coefficients())

    def coefficients(self) -> dict[str, Any]:
        """The fields that are its function's, by name."""
        return self.model_dump(exclude=set(self.own))

    @property
    def is_own(self) -> bool:
        """Whether its function is the user's and not Penstock's."""
        return not self.function.startswith(f"{HERE}.")

    def problem(self) -> str:
        """Why the function cannot be had or called with the cell's fields; empty when it can."""
        module, colon, name = self.function.partition(":")
        if not colon:
            return f"function is {self.function!r}; it is written module:name"
        try:
            found = getattr(importlib.import_module(module), name, None)
        except Exception as error:  # noqa: BLE001  whatever the user's module raises
            return f"the module {module!r} cannot be imported: {type(error).__name__}: {error}"
        if not callable(found):
            near = difflib.get_close_matches(name, vars(sys.modules[module]), n=1)
            return f"{module} has no {name!r} that can be called" + (f"; did you mean {near[0]!r}?" if near else "")
        takes = inspect.signature(found).parameters
        open_ended = any(each.kind is each.VAR_KEYWORD for each in takes.values())
        unknown = [key for key in self.coefficients() if key not in takes]
        if unknown and not open_ended:
            return f"{self.function} takes no {', '.join(unknown)}; it takes {', '.join(takes)}"
        return ""


# --- baselines ------------------------------------------------------------------------------------


class BaselineCell(Cell):
    """What an answer's reward is compared with."""

    scope: ClassVar[Literal["group", "batch"]] = "group"
    """`group`: a function of one group's rewards `(rewards, scored) [members]`; `batch`: of all answers',
    `(rewards, groups, scored) [answers]`. Each returns one advantage per answer, 0 for the unscored."""
    shifts: ClassVar[bool] = True
    """Whether reward and advantage differ by a number taken off, and not by a scale too."""
    other_prompts: ClassVar[bool] = False
    """Whether it compares with the answers to other prompts."""


class NoBaseline(BaselineCell):
    """The reward itself."""

    function = f"{HERE}.advantages:no_baseline"
    scope = "batch"
    kind: Literal["none"] = "none"


class GroupZScore(BaselineCell):
    """GRPO: reward minus the group's mean, over the group's standard deviation."""

    function = f"{HERE}.advantages:group_zscore"
    shifts = False
    kind: Literal["group_zscore"] = "group_zscore"
    eps: float = Field(1e-4, gt=0, le=0.1)
    """Added to the standard deviation. Positive, since a group may be nearly without spread."""


class GroupMean(BaselineCell):
    """Dr. GRPO: reward minus the group's mean, not divided by anything."""

    function = f"{HERE}.advantages:group_mean"
    kind: Literal["group_mean"] = "group_mean"


class LeaveOneOut(BaselineCell):
    """RLOO: reward minus the mean of the group's other members."""

    function = f"{HERE}.advantages:leave_one_out"
    kind: Literal["leave_one_out"] = "leave_one_out"


class OthersMean(BaselineCell):
    """REINFORCE with a baseline: reward minus the mean reward of the batch's other prompts."""

    function = f"{HERE}.advantages:others_mean"
    scope = "batch"
    other_prompts = True
    kind: Literal["others_mean"] = "others_mean"


Baseline = Annotated[NoBaseline | GroupZScore | GroupMean | LeaveOneOut | OthersMean, Field(discriminator="kind")]

# --- whitening ------------------------------------------------------------------------------------


class Whitening(Section):
    """Advantages shifted and scaled to mean 0 and standard deviation 1 over the whole batch, on all ranks."""

    over: Literal["none", "sequences", "tokens"] = "none"
    """`sequences`: every answer counts once in the moments; `tokens`: every token does, so that long answers weigh
    more, which only credit from values calls for."""
    eps: float = Field(1e-8, gt=0, le=0.1)
    """Added to the standard deviation."""


# --- credit ---------------------------------------------------------------------------------------


class CreditCell(Cell):
    """Which part of an answer's reward each of its tokens answers for: a function of one answer,
    `(rewards [tokens], actions [tokens], advantage)`, that returns advantages [tokens]."""

    needs_shift: ClassVar[bool] = False
    """Whether it takes reward − advantage for the answer's baseline, which only a baseline that shifts gives."""


class ValueCredit(CreditCell):
    """Credit from a value model: `(rewards, values, last_values, logp_prox, logp_sampler, mask)`, all [rows, window]
    but last_values [rows], to (advantages, returns)."""

    own = frozenset({"kind", "bootstrap_truncated"})
    corrects: ClassVar[bool] = False
    """Whether π_prox/μ is in its advantages already."""
    bootstrap_truncated: bool = False
    """Take an answer that was cut at its token budget to go on with the value of its last state, instead of ending
    there. One that was cut since it had outlived max_lag counts as ended either way."""


class Outcome(CreditCell):
    """Every token of an answer gets the answer's advantage."""

    function = f"{HERE}.credit:outcome"
    kind: Literal["outcome"] = "outcome"


class DiscountedReturn(CreditCell):
    """Every token gets the discounted sum of what comes after it, less the answer's baseline."""

    function = f"{HERE}.credit:discounted_return"
    needs_shift = True
    kind: Literal["discounted_return"] = "discounted_return"
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""


class GAE(ValueCredit):
    """Generalised advantage estimation from a value model."""

    function = f"{HERE}.credit:gae"
    kind: Literal["gae"] = "gae"
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """λ: 0 trusts the values (TD), 1 the returns (Monte Carlo)."""


class VTrace(ValueCredit):
    """IMPALA's V-trace: values corrected for tokens that another policy sampled."""

    function = f"{HERE}.credit:vtrace"
    corrects = True
    kind: Literal["vtrace"] = "vtrace"
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    lam: float = Field(1.0, ge=0, le=1)
    """Multiplies every trace coefficient c."""
    max_rho: float = Field(1.0, gt=0, le=1000)
    """ρ̄: largest weight of a temporal difference; decides which policy the values are of."""
    max_c: float = Field(1.0, gt=0, le=1000)
    """c̄: largest trace coefficient; decides how fast, and may not exceed ρ̄."""

    @model_validator(mode="after")
    def _fits(self) -> VTrace:
        if self.max_c > self.max_rho:
            raise ValueError(f"max_c ({self.max_c}) may not exceed max_rho ({self.max_rho}): IMPALA requires ρ̄ ≥ c̄")
        return self


Credit = Annotated[Outcome | DiscountedReturn | GAE | VTrace, Field(discriminator="kind")]

# --- values ---------------------------------------------------------------------------------------


class ValueCell(Section):
    """Where values come from."""

    own_backbone: ClassVar[bool] = False
    """Whether they have a model of their own beside the policy."""


class NoValue(ValueCell):
    """No value model."""

    kind: Literal["none"] = "none"


class OwnValue(ValueCell):
    """A value model with a backbone of its own, trained beside the policy with an optimizer of its own."""

    own_backbone = True
    kind: Literal["own"] = "own"
    path: str | None = None
    """Folder or hub id of the model that its backbone starts from; by default the model the run starts from."""
    learning_rate: float = on_resume(1e-5, gt=0, le=1)
    """Peak learning rate of its AdamW; the schedule is the learner's."""
    clip: float | None = Field(0.2, gt=0)
    """The new value may leave the old one by so much before its gradient is cut; null for no clipping."""
    warmup_steps: int = Field(0, ge=0)
    """First train steps of the run in which only the value model learns."""


class ValueHead(ValueCell):
    """A value head on the policy's own last hidden state: one more linear layer, one shared backbone."""

    kind: Literal["head"] = "head"
    coefficient: float = on_resume(0.1, gt=0, le=100)
    """Of the value loss beside the policy's, both of which move the shared backbone."""
    clip: float | None = Field(0.2, gt=0)
    """The new value may leave the old one by so much before its gradient is cut; null for no clipping."""
    warmup_steps: int = Field(0, ge=0)
    """First train steps of the run in which the policy's loss counts nothing."""


Value = Annotated[NoValue | OwnValue | ValueHead, Field(discriminator="kind")]
