"""The section `guards` of a run file: when something is amiss, and what is to be done then."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

from pydantic import Field, SerializerFunctionWrapHandler, create_model, field_validator, model_serializer
from pydantic import model_validator as validator

from penstock.learner.dials import HIGHEST_LAG
from penstock.services.settings import Section, form

Word = Literal["checkpoint", "pause", "stop", "roll_back", "warn"]
WORDS: tuple[str, ...] = get_args(Word)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*(?P<metric>\S+?)\s*(?P<sign>>=|<=|>|<)\s*(?P<bound>\S+)\s*")


class Condition(NamedTuple):
    """`kl/reference > 0.2`: a metric, a comparison, a number, and nothing else."""

    metric: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises ValueError that says how a condition is written."""
        found = _CONDITION.fullmatch(text)
        try:
            bound = float(found["bound"]) if found else math.nan
        except ValueError:
            bound = math.nan
        if found is None or not math.isfinite(bound):
            raise ValueError(
                f"a condition is a metric, one of {' '.join(_COMPARE)}, and a number, as `kl/reference > 0.2`; "
                f"found {text!r}"
            )
        return cls(found["metric"], found["sign"], bound)

    def holds(self, value: float) -> bool:
        """Never of what is not a number."""
        return _COMPARE[self.sign](value, self.bound)

    def overlaps(self, other: Condition) -> bool:
        """Whether both can hold of the same value."""
        (low, low_open), (high, high_open) = max(self._low, other._low), min(self._high, other._high)
        return low < high or (low == high and not low_open and not high_open)

    @property
    def _low(self) -> tuple[float, bool]:
        """The least value of which it holds, and whether that is left out."""
        return (self.bound, self.sign == ">") if ">" in self.sign else (-math.inf, False)

    @property
    def _high(self) -> tuple[float, bool]:
        return (self.bound, self.sign == "<") if "<" in self.sign else (math.inf, False)

    def __str__(self) -> str:
        whole = f"{self.bound:.0f}"
        return (
            f"{self.metric} {self.sign} {whole if float(whole) == self.bound and len(whole) < 16 else repr(self.bound)}"
        )


class ActionSection(Section):
    """One thing that a guard does. In its place may stand a word: one of those of `then`."""

    left_out: ClassVar[Mapping[str, str]] = {
        word: f"{word} is a word of its own, written `do: {word}`, or `then: {word}`" for word in WORDS
    }

    scale: str | None = None
    """A coefficient to multiply by `by`: `kl.coef`, `learning_rate`, `clip`, or a number of the objective or the trust
    cell by its key."""
    by: float | None = Field(None, gt=0, le=1000)
    """The factor, for `scale`; how many steps at a time, for `max_lag`."""
    at_least: float | None = None
    """It is multiplied, or tightened, no further down than this."""
    at_most: float | None = None
    """It is multiplied, or opened, no further up than this."""
    set: str | None = None
    """A coefficient to give the value `to`."""
    to: float | None = None
    """Its value, for `set`."""
    max_lag: Literal["tighten", "open"] | None = None
    """Lower or raise the bound on the lag, by 1 or by `by`."""
    gate: Literal["close"] | None = None
    """No new prompts, for `minutes`; the learner goes on with what there is."""
    minutes: float | None = Field(None, gt=0, le=1440)
    """After so long the gate is left to the lag again, whatever the metric says; sooner when the condition has failed
    to hold as often in a row as it must hold to fire."""
    webhook: str | None = Field(
        None,
        pattern=form(
            r"^(https?://\S+|\$[A-Za-z_][A-Za-z0-9_]*)$",
            "an address that begins with http:// or https://, or $NAME of an environment variable that holds one",
        ),
    )
    """An address that is sent a JSON object with the run, the guard, the value and what was done; or `$NAME` of an
    environment variable that holds the address, where that is a secret."""
    then: Word | None = None
    """checkpoint: write one at the end of the step. pause: stand still until somebody lets the run go on. stop: end,
    with a checkpoint. roll_back: go back to the last checkpoint from before the condition held. warn: say so."""

    @validator(mode="after")
    def _one_thing(self) -> ActionSection:
        given = [verb for verb in VERBS if getattr(self, verb) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"an action does one thing: {', '.join(VERBS)}; found {found}")
        wanted, may = _COMPANIONS[given[0]]
        present = {key for key in ("by", "at_least", "at_most", "to", "minutes") if getattr(self, key) is not None}
        if missing := wanted - present:
            raise ValueError(f"{given[0]} needs {', '.join(sorted(missing))}")
        if strange := present - wanted - may:
            raise ValueError(f"{', '.join(sorted(strange))} means nothing beside {given[0]}")
        self._amounts()
        return self

    def _amounts(self) -> None:
        if self.scale is not None and self.by == 1:
            raise ValueError("scale by 1 changes nothing")
        if self.max_lag is not None and self.by is not None and self.by != int(self.by):
            raise ValueError(f"max_lag moves by whole steps; found by: {self.by:g}")
        if self.max_lag is not None:
            self._lag_bounds()
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least ({self.at_least:g}) exceeds at_most ({self.at_most:g})")

    def _lag_bounds(self) -> None:
        """One end each, of whole steps."""
        end, other = ("at_most", "at_least") if self.max_lag == "open" else ("at_least", "at_most")
        value: float | None = getattr(self, end)
        if getattr(self, other) is not None:
            raise ValueError(f"{other} means nothing beside max_lag: {self.max_lag}")
        if self.max_lag == "open" and value is None:
            raise ValueError("max_lag: open needs at_most, or tokens could become older without end")
        if value is not None and (value != int(value) or not 0 <= value <= HIGHEST_LAG):
            raise ValueError(f"{end} of max_lag is a whole number from 0 to {HIGHEST_LAG}; found {value:g}")

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in write(self).items() if value is not None}

    @property
    def target(self) -> str:
        """What it moves or decides, for the question whether two actions contradict each other."""
        return self.scale or self.set or ("max_lag" if self.max_lag else "")

    @property
    def direction(self) -> int:
        """+1 where it moves its target up, -1 down, 0 where neither can be said."""
        if self.scale is not None and self.by is not None:
            return 1 if self.by > 1 else -1
        return {"open": 1, "tighten": -1, None: 0}[self.max_lag]

    def __str__(self) -> str:
        return self.then or ", ".join(f"{key} {shown}" for key, shown in self.model_dump().items())


VERBS = ("scale", "set", "max_lag", "gate", "webhook", "then")
_COMPANIONS: dict[str, tuple[set[str], set[str]]] = {
    "scale": ({"by"}, {"at_least", "at_most"}),
    "set": ({"to"}, set()),
    "max_lag": (set(), {"by", "at_least", "at_most"}),
    "gate": ({"minutes"}, set()),
    "webhook": (set(), set()),
    "then": (set(), set()),
}
"""For each verb the keys that it needs, and those that may stand beside it."""


class _Guard(Section):
    """A condition on a metric, and what is done when it has held for long enough."""

    name: str = Field("", pattern=form(r"^[A-Za-z0-9_.-]{0,60}$", "up to 60 letters, digits, '_', '.' and '-'"))
    """What it is called in events, metrics and on the page; by default the metric's name."""
    when: str
    """A metric, one of `>` `>=` `<` `<=`, and a number: `kl/reference > 0.2`."""
    do: tuple[ActionSection, ...]
    """What is done, in this order; one thing need not be a list."""
    cooldown: int = Field(5, ge=0, le=100_000)
    """So many measurements are not looked at after it has fired, while what was done takes effect."""
    times: int | None = Field(None, ge=1, le=100_000)
    """How often it fires at most, over all starts of the run; by default without end, and 3 times with roll_back."""
    exhausted: Literal["warn", "pause", "stop"] | None = None
    """What is done when the condition holds again after that; by default warn, and pause with roll_back."""
    optional: bool = False
    """Left out, without a word, in a run that does not record the metric; those of the presets are."""

    @field_validator("do", mode="before")
    @classmethod
    def _as_list(cls, do: Any) -> Any:
        listed = do if isinstance(do, (list, tuple)) else [do]
        return [{"then": each} if isinstance(each, str) else each for each in listed]

    @field_validator("do")
    @classmethod
    def _something(cls, do: tuple[ActionSection, ...]) -> tuple[ActionSection, ...]:
        if not do:
            raise ValueError("a guard does something: checkpoint, pause, stop, roll_back, warn, or an action with keys")
        return do

    @field_validator("when")
    @classmethod
    def _readable(cls, when: str) -> str:
        return str(Condition.parse(when))

    @property
    def condition(self) -> Condition:
        return Condition.parse(self.when)

    @property
    def needed(self) -> int:
        """Measurements in a row of which the condition must hold."""
        return int(getattr(self, "for"))

    @property
    def rolls_back(self) -> bool:
        return any(action.then == "roll_back" for action in self.do)

    @property
    def most(self) -> int | None:
        """How often it may fire."""
        return 3 if self.times is None and self.rolls_back else self.times

    @property
    def at_the_end(self) -> Literal["warn", "pause", "stop"]:
        """What is done once it has fired so often."""
        return self.exhausted or ("pause" if self.rolls_back else "warn")


if TYPE_CHECKING:

    class GuardSection(_Guard):
        """See `_Guard`; and `for`, which Python's grammar keeps from standing in a class."""

else:
    GuardSection = create_model(
        "GuardSection",
        __base__=_Guard,
        __doc__=_Guard.__doc__,
        __module__=__name__,
        **{
            "for": (
                int,
                Field(
                    1,
                    ge=1,
                    le=100_000,
                    description="Measurements in a row of which the condition must hold: steps of what is measured per "
                    "step, seconds of what is measured all the time (ledger/…, rollout/…, scorer/…, run/…).",
                ),
            )
        },
    )


def named(guards: tuple[GuardSection, ...]) -> list[tuple[str, GuardSection]]:
    """Every guard with a name of its own: given, or from its metric, with a number where that is taken."""
    found: dict[str, GuardSection] = {}
    for guard in guards:
        base = guard.name or re.sub(r"[^A-Za-z0-9_.-]", "_", guard.condition.metric)
        name, number = base, 2
        while name in found:
            name, number = f"{base}_{number}", number + 1
        found[name] = guard
    return list(found.items())
