"""Looking at all actors of a run: one question to Ray about every answer that is awaited, and new questions in turn.

To look at a thousand workers one by one takes the driver half a second, and it looks five times a second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import ray

from penstock.deploy.fleet import Member

ASKED_AT_ONCE = 5
"""Rollout workers that are asked at one look how they are. At five looks a second ten workers are asked every 0.4 s, a
thousand every 40 s; that one died or ended is no answer to a question, and noticed much sooner."""
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
        self._expected: set[str] = set()  # workers that have not answered yet
        self._looked: float | None = None

    def look(self, members: Sequence[Member], start_deadline: float) -> None:
        """`Member.poll` for all of them whom there may be news of. Raises DeadlinePassed as it does.

        While the driver itself did not move nobody was asked anything, and whoever was not heard of is not to blame."""
        away = self._passed()
        if away > _AWAY:
            for member in members:
                member.excuse(away)
        workers = [member for member in members if member.role == "rollout"]
        asked = self._asked.next(workers)
        chosen = asked | self._watched.next(workers) | self._expected
        # The learner and the scorers are few, and the learner's answers are its reports.
        looked = [m for m in members if m.name in chosen or m.role != "rollout" or m.state == "starting"]
        whose = {answer: member.name for member in looked for answer in member.awaited}
        there = set(ray.wait(list(whose), num_returns=len(whose), timeout=0)[0]) if whose else set()
        heard = {whose[answer] for answer in there}
        for member in looked:
            ask = member.role != "rollout" or member.name in asked
            if ask or member.name in heard or member.state == "starting":
                member.poll(start_deadline, there.__contains__, ask)
        self._expected = {member.name for member in looked if member.role == "rollout" and member.asked}

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

    def next(self, workers: Sequence[Member]) -> set[str]:
        """Names of those whose turn it is."""
        first = self._at % max(1, len(workers))
        many = max(self._least, math.ceil(self._share * len(workers)))
        chosen = [*workers[first : first + many], *workers[: max(0, min(first, first + many - len(workers)))]]
        self._at = first + len(chosen)
        return {worker.name for worker in chosen}
