"""What is asked of the learner's loop from other threads; the loop looks at it where a step can end or wait."""

from __future__ import annotations

import threading
from collections.abc import Mapping

WAITING = "waiting for groups"
"""What the loop says that it is doing when it can begin no step for want of groups."""


class Requests:
    """Every request is kept until the loop has heeded it. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turned: dict[str, float] = {}
        self._back_to: int | None = None
        self.checkpoint = False
        """A checkpoint is wanted at the end of this step."""
        self.paused = False
        """No train step is to begin."""

    def turn(self, changes: Mapping[str, float]) -> None:
        """Train with these coefficients from the next step on."""
        with self._lock:
            self._turned |= changes

    def turned(self) -> dict[str, float]:
        """What was turned since this was last asked."""
        with self._lock:
            turned, self._turned = self._turned, {}
        return turned

    def roll_back(self, step: int) -> None:
        """Go back to the newest checkpoint of at most `step`. Of two requests the one that goes further counts."""
        with self._lock:
            self._back_to = step if self._back_to is None else min(step, self._back_to)

    @property
    def wants_back(self) -> bool:
        """Whether a roll back has been asked for."""
        return self._back_to is not None

    def back_to(self) -> int | None:
        """The step that was asked for last, once; None where nobody asked."""
        with self._lock:
            step, self._back_to = self._back_to, None
        return step
