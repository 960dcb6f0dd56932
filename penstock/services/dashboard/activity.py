"""`activity.jsonl` in memory: what every actor did lately, at the resolution that a page can draw."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Set
from pathlib import Path

import msgspec

from penstock.services.dashboard.tail import Tail
from penstock.services.lanes import Line, Span

KEPT = 20_000
"""Spans that are remembered per lane, hours of an ordinary run."""
SHOWN = frozenset({"swapping weights", "publishing", "writing a checkpoint"})
"""Phases that are short, and that people look for: a cell that has any of one shows it."""
_LINE = msgspec.json.Decoder(Line)


class Activity:
    """The newest spans of every lane. Safe to use from several threads."""

    def __init__(self, path: Path, before: Path) -> None:
        self._tails = (Tail(before), Tail(path))
        self._lock = threading.Lock()
        self._lanes: dict[str, deque[Span]] = {}

    def follow(self) -> bool:
        """Read what was added; True when there was anything. Lines that are damaged are passed over: it is a picture,
        no account."""
        before, present = self._tails
        lines = (before.read() if not self._lanes else []) + present.read()
        with self._lock:
            for line in lines:
                try:
                    found = _LINE.decode(line)
                except msgspec.MsgspecError:
                    continue
                for name, spans in found.lanes.items():
                    self._lanes.setdefault(name, deque(maxlen=KEPT)).extend(spans)
        return bool(lines)

    @property
    def ends(self) -> tuple[float, float]:
        """The earliest and the latest moment that is remembered; (0, 0) without any."""
        with self._lock:
            lanes = [lane for lane in self._lanes.values() if lane]
            return (min(lane[0].begin for lane in lanes), max(lane[-1].end for lane in lanes)) if lanes else (0.0, 0.0)

    def between(self, begin: float, end: float, resolution: float) -> dict[str, list[Span]]:
        """By lane what happened from `begin` to `end`, unix seconds, in spans of at least `resolution` seconds."""
        with self._lock:
            lanes = {name: _within(lane, begin, end) for name, lane in self._lanes.items()}
        return {name: coarsened(spans, resolution, SHOWN) for name, spans in sorted(lanes.items()) if spans}


def _within(lane: deque[Span], begin: float, end: float) -> list[Span]:
    found: list[Span] = []
    for span in reversed(lane):
        if span.end <= begin:
            break
        if span.begin < end:
            found.append(span)
    return found[::-1]


def coarsened(spans: Iterable[Span], resolution: float, shown: Set[str] = frozenset()) -> list[Span]:
    """Neighbours of one phase joined, and every cell of `resolution` seconds that holds several phases given to the one
    that has most of it, or to one of `shown`. Cells begin at multiples of the resolution, so that what has been drawn
    stays as it was."""
    joined: list[Span] = []
    cell, shares = 0, dict[str, float]()

    def add(phase: str, begin: float, end: float) -> None:
        if joined and joined[-1].phase == phase and begin <= joined[-1].end:
            joined[-1] = Span(phase, joined[-1].begin, end)
        else:
            joined.append(Span(phase, begin, end))

    def settle() -> None:
        if shares:
            phase = max(shares, key=lambda phase: (phase in shown, shares[phase]))
            add(phase, cell * resolution, (cell + 1) * resolution)
            shares.clear()

    for span in spans:
        first, last = int(span.begin // resolution), int(span.end // resolution)
        for at in (first, last) if last > first else (first,):
            if at != cell:
                settle()
                cell = at
                if at == last > first + 1:
                    add(span.phase, (first + 1) * resolution, last * resolution)
            within = min(span.end, (at + 1) * resolution) - max(span.begin, at * resolution)
            if within > 0:
                shares[span.phase] = shares.get(span.phase, 0.0) + within
    settle()
    return joined
