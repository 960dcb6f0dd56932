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
thousand every 40 s; that one died or ended is no answer to a question, and noticed at the next look."""
_WITHIN_SILENCE = 4
"""How often each is asked, at least, within the time after which it counts as silent."""
_AWAY = 5.0
"""Seconds between two looks from which on it was the driver that did not move: it was stopped, or its machine slept."""


class Polling:
    """Polls members every `tick` seconds, and remembers whose turn it is to be asked."""

    def __init__(self, tick: float, silence: float) -> None:
        """`silence` is the seconds without a word after which a member counts as dead."""
        self._share = _WITHIN_SILENCE * tick / silence
        self._turn = 0
        self._looked: float | None = None

    def look(self, members: Sequence[Member], start_deadline: float) -> None:
        """`Member.poll` for all of them. Raises DeadlinePassed as it does.

        While the driver itself did not move nobody was asked anything, and whoever was not heard of is not to blame."""
        away = self._passed()
        if away > _AWAY:
            for member in members:
                member.excuse(away)
        whose = {answer: member.name for member in members for answer in member.awaited}
        there = set(ray.wait(list(whose), num_returns=len(whose), timeout=0)[0]) if whose else set()
        heard = {whose[answer] for answer in there}
        asked = self._in_turn([member for member in members if member.role == "rollout"])
        for member in members:
            # The learner and the scorers are few, and the learner's answers are its reports.
            ask = member.role != "rollout" or member.name in asked
            if ask or member.name in heard or member.state == "starting":
                member.poll(start_deadline, there.__contains__, ask)

    def _passed(self) -> float:
        """Seconds since the look before."""
        before, self._looked = self._looked, time.monotonic()
        return self._looked - before if before is not None else 0.0

    def _in_turn(self, workers: list[Member]) -> set[str]:
        """Names of those that are asked now."""
        first = self._turn % max(1, len(workers))
        at_once = max(ASKED_AT_ONCE, math.ceil(self._share * len(workers)))
        chosen = (workers[first:] + workers[:first])[:at_once]
        self._turn = first + len(chosen)
        return {worker.name for worker in chosen}
