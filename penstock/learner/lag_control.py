"""The bound on the lag as a controlled quantity: looks at train steps go in, another bound comes out.

What a larger bound costs shows in the effective sample size of the importance weights, what it gains in a learner that
waits less. There is no clock in here; time is counted in train steps.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from penstock.learner.config import AdaptiveLag

_MOST_DOUBLINGS = 4
_ON_ITS_WAY = 100
"""Steps that may still be reported under the old bound after a change: many small ones are told of together."""


@dataclass(frozen=True)
class Change:
    """Another bound."""

    bound: int
    why: str


class LagControl:
    """One run's. Call `step` after every train step, and `refused` when a change could not be made."""

    def __init__(self, rules: AdaptiveLag) -> None:
        self._rules = rules
        self._steps = 0
        self._bound: int | None = None
        """The one in force, or on its way."""
        self._before: int | None = None
        """The one that a change on its way takes the place of."""
        self._settled = 0
        """What is seen until this step does not belong to the bound alone."""
        self._changed = 0
        self._seen: deque[tuple[float, float]] = deque(maxlen=rules.every)
        self._costly, self._until, self._failures = rules.max + 1, 0, 0
        """The bound that cost too much, until when it is not tried again, and how often one did."""

    def step(self, ess: float, wait: float, bound: int) -> Change | None:
        """`ess` and `wait`: the effective sample size of one step, and the share of its time for which the learner
        waited; `bound`: the one that it was made under. Steps in which either is not a number move nothing."""
        self._steps += 1
        if not self._in_force(bound) or self._steps <= self._settled:
            return None
        if not (math.isfinite(ess) and math.isfinite(wait)):
            return None
        self._seen.append((ess, wait))
        if len(self._seen) < self._rules.every:
            return None
        return self._judged(bound)

    def refused(self) -> None:
        """The last change could not be made."""
        if self._before is not None:
            self._expect(self._before)

    def _in_force(self, bound: int) -> bool:
        """Whether this step was made under the bound that is looked at. One that somebody else has set is left alone
        for a while."""
        if bound == self._bound:
            self._before = None
            return True
        if bound == self._before and self._steps - self._changed <= _ON_ITS_WAY:
            return False
        somebody, hold = self._bound is not None and bound != self._before, self._rules.hold
        self._expect(bound)
        if somebody:
            self._settled = self._steps + (2**62 if hold is None else hold)
        return True

    def _judged(self, bound: int) -> Change | None:
        rules = self._rules
        ess, wait = (sum(values) / len(self._seen) for values in zip(*self._seen, strict=True))
        said = f"over {rules.every} steps at max_lag {bound} the effective sample size was {ess:.3f}, the target is "
        said += f"{rules.target_ess:g}, and the learner waited {wait:.0%} of its time"
        if ess < rules.target_ess and bound > rules.min:
            self._costly, self._until = bound, self._steps + rules.again * 2 ** min(self._failures, _MOST_DOUBLINGS)
            self._failures += 1
            return self._change(bound - 1, said)
        barred = bound + 1 >= self._costly and self._steps < self._until
        if ess > rules.target_ess + rules.margin and wait > rules.wait and bound < rules.max and not barred:
            return self._change(bound + 1, said)
        return None

    def _change(self, bound: int, why: str) -> Change:
        before = self._bound
        self._expect(bound)
        self._before = before
        return Change(bound, why)

    def _expect(self, bound: int) -> None:
        """What is seen from now on, after the groups from before, belongs to this bound."""
        self._bound, self._before = bound, None
        self._changed, self._settled = self._steps, self._steps + bound + 1
        self._seen.clear()
