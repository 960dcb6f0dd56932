"""Counts what a worker does, and how fast."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from penstock.services.contracts import SwapReport

WINDOW = 30.0
"""Seconds over which rates are taken."""

COUNTED = (
    *("tokens", "groups_put", "swaps", "cut", "fenced", "refused", "handed_back", "resumed", "mask_unknown"),
    *("tokens_put", "tokens_resumed", "tokens_handed_back", "tokens_dropped"),
)
"""What is reported from the start: that something grew is seen only where it was 0 before."""


class Meter:
    """Totals since the start and rates over the last half minute. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._recent: deque[tuple[float, int, float]] = deque()
        self._reading = threading.Lock()
        self.totals: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self._waited = 0.0
        self._swap: SwapReport | None = None
        self.largest_gap = (0.0, "")
        """Of all probes so far, in nats, and the version it was found with."""

    def count(self, name: str, by: int = 1) -> None:
        self.totals[name] += by

    def sampled(self, tokens: int) -> None:
        self.totals["tokens"] += tokens
        self._note(tokens, 0.0)

    def waited(self, seconds: float) -> None:
        self._note(0, seconds)
        self._waited += seconds

    def _note(self, tokens: int, seconds: float) -> None:
        """What is older than the window is forgotten here, and not only when somebody asks: perhaps nobody does."""
        now = self._clock()
        with self._reading:
            self._recent.append((now, tokens, seconds))
            self._forget(now)

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] < now - WINDOW:
            self._recent.popleft()

    def swapped(self, report: SwapReport) -> None:
        self.totals["swaps"] += 1
        self._swap = report
        self.largest_gap = max(self.largest_gap, (report.gap or 0.0, str(report.version)))

    def read(self) -> dict[str, float]:
        """By metric name. Called from any thread."""
        now = self._clock()
        with self._reading:
            self._forget(now)
            recent = list(self._recent)
        seconds = max(min(WINDOW, now - self._began), 1e-3)
        values = {f"rollout/{name}": float(count) for name, count in dict(self.totals).items()}
        values["rollout/tokens_per_second"] = sum(tokens for _, tokens, _ in recent) / seconds
        values["rollout/waiting_seconds"] = self._waited
        values["rollout/waiting_share"] = min(1.0, sum(waited for *_, waited in recent) / seconds)
        if self._swap is not None:
            values["rollout/swap/verify_seconds"] = self._swap.verify
            values["rollout/swap/pause_seconds"] = self._swap.pause
            values["rollout/swap/probe_seconds"] = self._swap.probe
            if self._swap.gap is not None:
                values["rollout/swap/gap"] = self._swap.gap
        return values
