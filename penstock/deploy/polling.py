"""Looking at all actors of a run: one question to Ray about every answer that is awaited, and new questions in turn.

To look at a thousand workers one by one takes the driver half a second, and it looks five times a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import ray

from penstock.deploy.fleet import Member

ASKED_AT_ONCE = 2
"""Rollout workers that are asked at one look how they are, each of which costs the driver half a millisecond. At five
looks a second ten workers are asked every second, a thousand every 100 s; that one died or ended is no answer to a
question, and noticed much sooner."""
WATCHED_AT_ONCE = 100
"""Rollout workers whose end is looked for at one look, at least: of so many all."""
_WATCHED_WITHIN = 1.0
"""Seconds within which the end of every worker is noticed, however many there are."""
_WITHIN_SILENCE = 4
"""How often each is asked, at least, within the time after which it counts as silent."""
_AWAY = 5.0
"""Seconds between two looks from which on it was the driver that did not move: it was stopped, or its machine slept."""


class Polling:
    """Polls members every `tick` seconds, and remembers whose turn it is to be asked."""

    def __init__(self, tick: float, silence: float) -> None:
        """`silence` is the seconds without a word after which a member counts as dead."""
        self._asked = _Turn(ASKED_AT_ONCE, _WITHIN_SILENCE * tick / silence)
        self._watched = _Turn(WATCHED_AT_ONCE, tick / _WATCHED_WITHIN)
        self._expected: list[Member] = []  # workers that have not answered yet
        self._looked: float | None = None
        self.away = 0.0
        """Seconds for which the driver did not move before the last look; 0 when it did."""

    def look(self, few: Sequence[Member], workers: Sequence[Member], start_deadline: float) -> list[Member]:
        """`Member.poll` for the `few` (the learner, whose answers are its reports, and the scorers), and for those
        rollout `workers` whose turn it is; returns these. Raises DeadlinePassed as it does.

        While the driver itself did not move nobody was asked anything, and whoever was not heard of is not to blame."""
        passed = self._passed()
        self.away = passed if passed > _AWAY else 0.0
        for member in (*few, *workers) if self.away else ():
            member.excuse(self.away)
        to_ask = self._asked.next(workers)
        asked = {member.name for member in to_ask}
        chosen = {member.name: member for member in (*self._watched.next(workers), *to_ask, *self._expected)}
        looked = [*few, *chosen.values()]
        whose = {answer: member.name for member in looked for answer in member.awaited}
        there = set(ray.wait(list(whose), num_returns=len(whose), timeout=0)[0]) if whose else set()
        heard = {whose[answer] for answer in there}
        for member in looked:
            ask = member.role != "rollout" or member.name in asked
            if ask or member.name in heard or member.state == "starting":
                member.poll(start_deadline, there.__contains__, ask)
        self._expected = [member for member in chosen.values() if member.asked and member.state == "running"]
        return list(chosen.values())

    def _passed(self) -> float:
        """Seconds since the look before."""
        before, self._looked = self._looked, time.monotonic()
        return self._looked - before if before is not None else 0.0


class _Turn:
    """Goes round, some at a time."""

    def __init__(self, least: int, share: float) -> None:
        """At least so many at a time, and at least this share of all."""
        self._least, self._share = least, share
        self._at = 0

    def next(self, workers: Sequence[Member]) -> list[Member]:
        """Those whose turn it is. Touches none of the others: of a thousand that would take a millisecond."""
        first = self._at % max(1, len(workers))
        many = max(self._least, math.ceil(self._share * len(workers)))
        rest = max(0, min(first, first + many - len(workers)))
        chosen = [*workers[first : first + many], *workers[:rest]]
        self._at = first + len(chosen)
        return chosen
