"""What is measured of a run all the time, also while no step comes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from penstock.services.replay import LedgerCounts

WINDOW = 60.0
"""Seconds over which the share of refused groups is taken."""
FEWEST = 4
"""Groups that must have ended within it: of fewer a share says little."""


class Live:
    """Shares and ages from what the supervisor sees anyway."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int, int]] = deque()
        self._stepped = clock()
        self._skipped = 0

    def stepped(self) -> None:
        """A train step is done, or training begins, or nobody expects one."""
        self._stepped, self._skipped = self._clock(), 0

    def skipped(self) -> None:
        """A train step changed nothing, for a gradient that was infinite or undefined."""
        self._skipped += 1

    def read(self, ledger: LedgerCounts | None) -> dict[str, float]:
        """By metric name."""
        found = {"run/since_step": self._clock() - self._stepped, "run/nonfinite": float(self._skipped)}
        if ledger is not None:
            share = self._refused(ledger)
            found |= {} if share is None else {"ledger/refused_share": share}
        return found

    def _refused(self, ledger: LedgerCounts) -> float | None:
        """Refused groups over all that workers have handed in within the window; None of too few."""
        refused = sum(ledger.refused.values())
        handed_in = refused + sum(ledger.by_state[s] for s in ("stored", "taken", "applied", "committed"))
        handed_in += max(0, ledger.by_state["dropped"] - refused)  # by the learner, after they had come in
        now = self._clock()
        self._seen.append((now, refused, handed_in))
        while len(self._seen) > 1 and self._seen[1][0] <= now - WINDOW:
            self._seen.popleft()
        _, refused_then, handed_in_then = self._seen[0]
        ended = handed_in - handed_in_then
        return (refused - refused_then) / ended if ended >= FEWEST else None
