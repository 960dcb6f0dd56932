"""What an actor does over time, as spans of phases: it records them, the driver gathers them, the page draws them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

SHORTEST = 0.02
"""Seconds; what takes less belongs to the phase before it, so that a loop's every turn is not a span of its own."""
CUT = 5.0
"""Seconds after which a phase that goes on is handed out in part, so that readers see it before it ends."""
MOST = 1000
"""Spans that are kept for whoever takes them; the oldest go first."""
MOST_BYTES = 32 * 1024 * 1024
"""Size at which the file of all lanes is put aside. The one before it is then gone."""


class Span(NamedTuple):
    """One phase, from and to, in unix seconds of the actor's own clock."""

    phase: str
    begin: float
    end: float


class Lane:
    """One actor's phases. `enter` costs about a microsecond and may be called at every turn of a loop; `take` may be
    called by another thread. `clock` gives unix seconds."""

    def __init__(self, phase: str = "starting", clock: Callable[[], float] = time.time) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._phase, self._begin = phase, clock()
        self._closed: list[Span] = []

    def enter(self, phase: str) -> None:
        """The actor does something else now, or the same still."""
        if phase == self._phase:
            return
        now = self._clock()
        with self._lock:
            if now - self._begin >= SHORTEST:
                self._close(now)
            elif self._closed and self._closed[-1].end == self._begin:
                # Too short to be seen: the time goes to the phase before, which may go on with this one.
                last = self._closed.pop()
                if last.phase == phase:
                    self._begin = last.begin
                else:
                    self._closed.append(Span(last.phase, last.begin, now))
                    self._begin = now
            self._phase = phase

    def take(self) -> list[Span]:
        """Spans since the last call that have ended, oldest first, and a piece of the present one when it is long."""
        now = self._clock()
        with self._lock:
            if now - self._begin >= CUT:
                self._close(now)
            taken, self._closed = self._closed, []
        return taken

    def _close(self, now: float) -> None:
        self._closed.append(Span(self._phase, self._begin, now))
        self._begin = now
        del self._closed[:-MOST]


class Line(msgspec.Struct, frozen=True):
    """One line of `activity.jsonl`: what the actors have done since the line before, by their names."""

    lanes: dict[str, list[Span]]


class LanesLog:
    """Appends to `activity.jsonl`. A file that has grown too large becomes `before`, in the place of an older one."""

    def __init__(self, path: Path, before: Path, most_bytes: int = MOST_BYTES) -> None:
        self._path, self._before, self._most = path, before, most_bytes
        self._file: IO[bytes] | None = None

    def write(self, lanes: Mapping[str, Iterable[Span]]) -> None:
        """One line for all lanes; none when there is nothing to say."""
        found = {name: [_rounded(span) for span in spans] for name, spans in lanes.items()}
        found = {name: spans for name, spans in found.items() if spans}
        if not found:
            return
        if self._file is None:
            self._file = self._path.open("ab")
        self._file.write(msgspec.json.encode(Line(found)) + b"\n")
        self._file.flush()
        if self._file.tell() > self._most:
            self.close()
            self._path.replace(self._before)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _rounded(span: Span) -> Span:
    return Span(span.phase, round(span.begin, 3), round(span.end, 3))
