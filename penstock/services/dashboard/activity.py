"""`activity.jsonl` in memory: what every actor did lately, at the resolution that a page can draw."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import msgspec

from penstock.services.dashboard.tail import Tail
from penstock.services.lanes import Line, Span

KEPT = 20_000
"""Spans that are remembered per lane, hours of an ordinary run."""
SEAM = 0.002
"""Seconds between two spans that lie together, for rounding."""
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
                except ValueError:  # msgspec's own, and that of bytes that are no text
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
        return {name: coarsened(spans, resolution) for name, spans in sorted(lanes.items()) if spans}

    def shares(self, begin: float, end: float) -> dict[str, dict[str, float]]:
        """By lane and phase, the seconds from `begin` to `end`."""
        with self._lock:
            return {name: seconds(_within(lane, begin, end)) for name, lane in sorted(self._lanes.items())}


def _within(lane: deque[Span], begin: float, end: float) -> list[Span]:
    found: list[Span] = []
    for span in reversed(lane):
        if span.end <= begin:
            break
        if span.begin < end:
            found.append(Span(span.phase, max(begin, span.begin), min(end, span.end)))
    return found[::-1]


def coarsened(spans: Iterable[Span], resolution: float) -> list[Span]:
    """Spans of at least `resolution` seconds as they are, and shorter ones that lie together in a cell of that length
    as one, of the phase that has most of it. Cells begin at multiples of the resolution, so that what has been drawn
    stays as it was."""
    joined: list[Span] = []
    cell, small = 0, list[Span]()

    def add(phase: str, begin: float, end: float) -> None:
        if joined and joined[-1].phase == phase and begin - joined[-1].end < SEAM:
            joined[-1] = Span(phase, joined[-1].begin, end)
        else:
            joined.append(Span(phase, begin, end))

    def settle() -> None:
        if small:
            shares = seconds(small)
            add(max(shares, key=lambda phase: shares[phase]), small[0].begin, small[-1].end)
            small.clear()

    for span in spans:
        if span.end - span.begin >= resolution:
            settle()
            add(*span)
            continue
        at = int(span.begin // resolution)
        if at != cell:
            settle()
            cell = at
        small.append(span)
    settle()
    return joined


def seconds(spans: Iterable[Span]) -> dict[str, float]:
    """How long each phase took in all."""
    found: dict[str, float] = {}
    for span in spans:
        found[span.phase] = found.get(span.phase, 0.0) + span.end - span.begin
    return found
