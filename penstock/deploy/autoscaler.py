"""How many rollout workers a learner needs: looks at what was seen go in, a wanted number comes out.

There is no clock in here and nothing is started: the same looks give the same numbers.

With n workers that are busy for a share b of their time, and a learner that waits for a share w of its own, the learner
could keep n·b/(1 − w) of them busy. Of that number both directions are judged, so that a step up is as long as it must
be, and neither is followed by a step back while the load stays what it is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from penstock.rollout.config import AutoscaleSection

STEPS = 3
"""Train steps that a judgement needs: shares of part of a step say nothing."""
_STARVED = 0.95
"""A learner that waits for so much of its time has perhaps no step to count, and needs help all the same."""
_GAIN = 0.25
"""A step up must shorten the wait by this share of what was expected of it; otherwise something else is too slow."""
_HIDDEN = 0.05
"""Less idleness than this says nothing of how many workers would do."""
_MOST_DOUBLINGS = 5


@dataclass(frozen=True)
class Load:
    """What was seen of a run in one stretch of time."""

    seconds: float
    workers: int
    """Rollout workers that have delivered groups, and go on."""
    coming: int
    """Wanted workers that have delivered nothing yet. They are not missing: an engine takes minutes to start."""
    waited: float
    """Seconds in which the learner waited for groups."""
    idle: float
    """Share of the workers' time in which they had nothing to generate, mean over them."""
    queue: float
    """Age of the queue, in train steps: how long groups lie stored before the learner takes them, which is the number
    of stored groups over that of a step."""
    max_lag: int
    """The age that the gate allows, in train steps."""
    steps: int
    """Train steps that ended in it."""
    places: int
    """Groups that the gate admits at a time; a worker beyond them could have none."""


@dataclass(frozen=True)
class Decision:
    """A change of the number of workers."""

    count: int
    why: str


@dataclass(frozen=True)
class _Seen:
    """Some stretches together, all with the same workers."""

    seconds: float
    workers: int
    waited: float
    """Share of the time."""
    idle: float
    queue: float
    max_lag: int
    places: int

    @property
    def needed(self) -> float:
        """Workers that the learner could keep busy all of their time."""
        return self.workers * (1 - self.idle) / max(1 - self.waited, 1e-9)

    def wait_with(self, workers: int) -> float:
        """The share of its time for which the learner would wait with so many."""
        return max(0.0, 1 - workers / max(self.needed, 1e-9))

    def __str__(self) -> str:
        return (
            f"with {self.workers} workers the learner waited {self.waited:.0%} of {self.seconds:.0f} s, they had "
            f"nothing to do for {self.idle:.0%}, and groups waited {self.queue:.1f} steps"
        )


@dataclass(frozen=True)
class _Barred:
    """A number that is not to be tried for a while."""

    count: int
    until: float


class Autoscaler:
    """One run's. Call `look` after every stretch of time with what was seen in it."""

    def __init__(self, rules: AutoscaleSection) -> None:
        self._rules = rules
        self._window: deque[Load] = deque()
        self._now = 0.0
        self._step_seconds = math.inf
        self._too_many = _Barred(rules.max + 1, 0.0)
        self._too_few = _Barred(rules.min - 1, 0.0)
        self._failures = 0
        self._last: tuple[_Seen, int] | None = None
        """What was seen before the last change, and the number that it led to."""

    def look(self, load: Load, wanted: int) -> Decision | None:
        """What to change, if anything. `wanted` is the number now."""
        rules = self._rules
        self._now += load.seconds
        if not rules.min <= wanted <= rules.max:
            bound = min(max(wanted, rules.min), rules.max)
            return self._decide(bound, f"{wanted} is outside of rollout.autoscale, {rules.min} to {rules.max}")
        if load.coming or load.workers != wanted or (self._window and self._window[-1].workers != load.workers):
            self._window.clear()
            return None
        self._window.append(load)
        while sum(each.seconds for each in self._window) > 2 * max(rules.up_after, rules.down_after):
            if sum(each.steps for each in self._window) <= 2 * STEPS:
                break  # few long steps: all of them are needed
            self._window.popleft()
        recent = self._over(rules.up_after)
        if recent is None:
            return None
        return self._undo(recent) or self._up(recent) or self._down(self._over(rules.down_after))

    def refused(self, count: int) -> None:
        """`count` workers cannot be had now: ask for fewer for a while."""
        self._fail()
        self._too_many = _Barred(count, self._now + self._patience)
        self._last = None

    def forget(self) -> None:
        """Somebody else has changed the number: what was seen before says nothing of what follows."""
        self._window.clear()
        self._last = None

    # --- the three ways -----------------------------------------------------------------------------

    def _up(self, seen: _Seen) -> Decision | None:
        """As many at once as bring the wait below its bound, but not more than twice as many as there are."""
        rules = self._rules
        if seen.waited <= rules.up_wait or seen.idle > rules.down_idle:
            return None  # where the workers wait too, more of them would only wait with them
        enough = math.ceil(min(seen.needed * (1 - rules.up_wait), 2 * seen.workers) - 1e-6)
        target = min(enough, rules.max, seen.places)
        if self._now < self._too_many.until:
            target = min(target, self._too_many.count - 1)
        if target <= seen.workers:
            return None
        if self._last is not None and self._last[1] < self._last[0].workers:
            # The step before was one down, to here: it was wrong.
            self._fail()
            self._too_few = _Barred(seen.workers, self._now + self._patience)
        return self._decide(target, str(seen), seen)

    def _undo(self, seen: _Seen) -> Decision | None:
        """Take back a step up that did not help: the engines may share what is scarce, or the gate, the scorers or the
        length of answers may be what the learner waits for."""
        if self._last is None or self._last[1] <= self._last[0].workers:
            return None
        before, count = self._last
        self._last = None
        expected = before.wait_with(count)
        if seen.waited <= self._rules.up_wait or before.waited - seen.waited >= _GAIN * (before.waited - expected):
            return None
        self._fail()
        self._too_many = _Barred(before.workers + 1, self._now + self._patience)
        return self._decide(before.workers, f"more did not help: {seen}; with {before.workers} {before.waited:.0%}")

    def _down(self, seen: _Seen | None) -> Decision | None:
        """One at a time: where those left would still have time to spare, or where groups grow old in the store."""
        rules = self._rules
        if seen is None:
            return None
        fewer, bearable = seen.workers - 1, rules.up_wait / 2
        spare = fewer * (1 - rules.down_idle) >= seen.needed - 1e-6
        # Workers that seem busy may be busy with the last of their answers; only trying shows it.
        tolerable = seen.idle < _HIDDEN or seen.wait_with(fewer) <= bearable
        old = seen.waited <= bearable and seen.queue >= rules.down_queue * max(1, seen.max_lag) and tolerable
        least = max(rules.min, self._too_few.count + 1 if self._now < self._too_few.until else 0)
        if not (spare or old) or seen.workers <= least:
            return None
        return self._decide(fewer, str(seen), seen)

    # --- what is known ------------------------------------------------------------------------------

    def _over(self, seconds: float) -> _Seen | None:
        """The newest stretches that are `seconds` long and hold STEPS steps; None while there is not so much."""
        took = waited = idle = queue = 0.0
        steps = 0
        for each in reversed(self._window):
            took, waited = took + each.seconds, waited + each.waited
            idle, queue = idle + each.idle * each.seconds, queue + each.queue * each.seconds
            steps += each.steps
            if took >= seconds and steps >= STEPS:
                break
        if took <= 0 or took < seconds:
            return None
        newest = self._window[-1]
        share = min(1.0, max(0.0, waited / took))
        if steps:
            self._step_seconds = took / steps
        known = 1.0 * STEPS * self._step_seconds if math.isfinite(self._step_seconds) else 3 * seconds
        if steps < STEPS and not (share >= _STARVED and took >= known):
            return None
        return _Seen(took, newest.workers, share, idle / took, queue / took, newest.max_lag, newest.places)

    def _decide(self, count: int, why: str, seen: _Seen | None = None) -> Decision:
        self._window.clear()
        self._last = (seen, count) if seen is not None else None
        return Decision(count, why)

    def _fail(self) -> None:
        self._failures = min(self._failures + 1, _MOST_DOUBLINGS)

    @property
    def _patience(self) -> float:
        return self._rules.again * 2.0 ** max(0, self._failures - 1)
