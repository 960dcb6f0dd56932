"""When does a guard fire? A small machine per guard: measurements in, firings out. No clock and no run in here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from penstock.deploy.guards.config import GuardSection

LIVE = ("ledger/", "rollout/", "scorer/", "run/")
"""How the names of metrics begin that are measured all the time, also while no step comes."""


@dataclass(frozen=True)
class Firing:
    """A condition has held for long enough."""

    name: str
    guard: GuardSection
    value: float
    step: int
    since: int
    """The step after which it began to hold."""
    what: Literal["fired", "exhausted"] = "fired"
    """`exhausted`: it has fired as often as it may, and holds again."""


class Watch:
    """One guard's memory."""

    def __init__(self, name: str, guard: GuardSection, fired: int = 0, rest: int = 0) -> None:
        """`fired` and `rest` come from an earlier start of the run."""
        self.name, self.guard = name, guard
        self.fired, self.rest = fired, rest
        """How often it has fired, and how many measurements more are not looked at."""
        self._condition = guard.condition
        self._well = 0
        self._held, self._since, self._before = 0, 0, 0
        self._told = False

    @property
    def live(self) -> bool:
        """Whether its metric is measured all the time, and not once per step."""
        return self._condition.metric.startswith(LIVE)

    @property
    def well(self) -> bool:
        """Whether the condition has failed to hold as often in a row as it must hold to fire, cooldown or not."""
        return self._well >= self.guard.needed

    def see(self, value: float | None, step: int) -> Firing | None:
        """One measurement, at `step`; None where there was none, which changes nothing."""
        if value is None:
            return None
        before, self._before = self._before, step
        self._well = 0 if self._condition.holds(value) or math.isnan(value) else self._well + 1
        if self.rest > 0:
            self.rest -= 1
            self._held = 0
            return None
        if not self._condition.holds(value):
            # Said once is enough; a person who was asked is asked again when it holds anew.
            self._held, self._told = 0, self._told and self.guard.at_the_end == "warn"
            return None
        if self._held == 0:
            self._since = min(before, step)
        self._held += 1
        return self._fire(value, step) if self._held >= self.guard.needed else None

    def _fire(self, value: float, step: int) -> Firing | None:
        most = self.guard.most
        if most is not None and self.fired >= most:
            told, self._told = self._told, True
            return None if told else Firing(self.name, self.guard, value, step, self._since, "exhausted")
        self.fired += 1
        self._held, self.rest = 0, self.guard.cooldown
        return Firing(self.name, self.guard, value, step, self._since)

    def begin_again(self, step: int) -> None:
        """The run goes on from another step: what held before says nothing of it."""
        self._held, self._well, self._before = 0, 0, step
