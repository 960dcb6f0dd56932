"""`events.jsonl` in memory: the newest events, and those that are marks on the plots."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from penstock.services.dashboard.tail import Tail

MARKS = frozenset({"steered", "refused", "guard", "rolled_back", "autoscaling", "died", "failed"})
"""Kinds of events that are drawn on the plots: what people, guards and the autoscaler did, and deaths."""
RECENT, MARKED = 500, 2000
"""How many are remembered."""


@dataclass(frozen=True)
class Entry:
    """One event."""

    number: int
    """Counts from 1, in the order of the file."""
    time: float
    """Unix seconds."""
    kind: str
    message: str
    step: int
    """The train step that was under way."""
    facts: dict[str, Any]
    """What else was written down: `by`, `asked`, `name`, …"""


class Chronicle:
    """Safe to use from several threads. `step_at` says which step was under way at a unix time."""

    def __init__(self, path: Path, step_at: Callable[[float], int]) -> None:
        self._tail, self._step_at = Tail(path), step_at
        self._lock = threading.Lock()
        self._recent: deque[tuple[int, dict[str, Any]]] = deque(maxlen=RECENT)
        self._marks: deque[tuple[int, dict[str, Any]]] = deque(maxlen=MARKED)
        self.count = 0

    def follow(self) -> bool:
        """Read what was added; True when there was anything."""
        lines = self._tail.read()
        with self._lock:
            for line in lines:
                try:
                    facts = msgspec.json.decode(line, type=dict[str, Any])
                except ValueError:  # msgspec's own, and that of bytes that are no text
                    continue  # what else the file says is worth more than an error here
                if not isinstance(facts.get("time"), int | float):
                    continue
                self.count += 1
                self._recent.append((self.count, facts))
                if facts.get("kind") in MARKS:
                    self._marks.append((self.count, facts))
        return bool(lines)

    def after(self, number: int) -> list[Entry]:
        """Those behind the `number`-th that are remembered, oldest first."""
        with self._lock:
            found = dict(self._marks) | dict(self._recent)
        return [self._entry(at, found[at]) for at in sorted(found) if at > number]

    def _entry(self, number: int, line: dict[str, Any]) -> Entry:
        facts = dict(line)
        time, kind = float(facts.pop("time")), str(facts.pop("kind", ""))
        step = facts.get("step")
        at = step if isinstance(step, int) else self._step_at(time)
        return Entry(number, time, kind, str(facts.pop("message", "")), at, facts)
