"""What is asked of the learner's loop from other threads; the loop looks at it where a step can end or wait."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import NamedTuple

WAITING = "waiting for groups"
"""What the loop says that it is doing when it can begin no step for want of groups."""

NONFINITE = "nonfinite"
"""Why a step was skipped whose gradients were infinite or undefined."""


class Back(NamedTuple):
    """A wish to go back."""

    step: int
    """To the newest checkpoint of at most this step."""
    lineage: int
    """The lineage in which it was asked for; a wish of a future that has been given up means nothing any more."""


class Requests:
    """Every request is kept until the loop has heeded it. Safe to use from any thread.

    Whoever asks numbers his requests, from 1 on: they may come in another order than they were sent in, and of two
    about the same thing the younger one counts.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turned: dict[str, float] = {}
        self._numbers: dict[str, int] = {}
        self._pause = (0, False)
        self._back: Back | None = None
        self.heard = 0
        """The largest number of a turn that has come."""
        self.checkpoint = False
        """A checkpoint is wanted at the end of this step."""

    @property
    def paused(self) -> bool:
        """No train step is to begin."""
        return self._pause[1]

    def pause(self, paused: bool, number: int) -> None:
        """Begin no train step, or go on."""
        with self._lock:
            self._pause = max(self._pause, (number, paused))

    def turn(self, changes: Mapping[str, float], number: int) -> None:
        """Train with these coefficients from the next step on."""
        with self._lock:
            fresh = {name: value for name, value in changes.items() if number > self._numbers.get(name, 0)}
            self._turned |= fresh
            self._numbers |= dict.fromkeys(fresh, number)
            self.heard = max(self.heard, number)

    def turned(self) -> dict[str, float]:
        """What was turned since this was last asked."""
        with self._lock:
            turned, self._turned = self._turned, {}
        return turned

    def roll_back(self, step: int, lineage: int) -> None:
        """Go back to the newest checkpoint of at most `step`. Of two requests the one that goes further counts."""
        with self._lock:
            asked = Back(step, lineage)
            self._back = asked if self._back is None or self._back.lineage < lineage else min(asked, self._back)

    def wants_back(self, lineage: int) -> bool:
        """Whether a roll back of this lineage has been asked for."""
        return self._back is not None and self._back.lineage == lineage

    def back_to(self) -> int | None:
        """The step that was asked for last, once; None where nobody asked."""
        with self._lock:
            back, self._back = self._back, None
        return None if back is None else back.step
