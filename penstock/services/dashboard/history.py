"""`metrics.jsonl` in memory, kept up with the file while the run goes on, asked for in buckets of steps.

What belongs to the run is decided as in `services/metrics.py`: lines of one step are joined, and what an older lineage
wrote beyond the step at which a newer one begins is a lost future.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.services.dashboard.buckets import Buckets, floor, reduce, width_for
from penstock.services.dashboard.columns import KEYS, Columns
from penstock.services.dashboard.tail import Tail
from penstock.services.metrics import MetricError

_BLOCK = 2048
"""Rows that are laid into the columns at once."""
_REMEMBERED = 4096
"""Changes that are remembered for pages that are behind; one that is further behind is sent everything."""
_NUMBERS = msgspec.json.Decoder(dict[str, float])
_TEXTS = msgspec.json.Decoder(dict[str, float | str])
_LARGEST = 2.0**53
"""Beyond it, not every whole number is one that a JSON reader gets right."""


@dataclass(frozen=True)
class Look:
    """What a page is told of the metrics."""

    revision: int
    width: int
    """Steps per bucket."""
    begin: int | None = None
    """What the asker has from this step on is replaced by what is here; None when nothing has changed."""
    first: list[int] = field(default_factory=list)
    """The smallest step of every bucket."""
    last: list[int] = field(default_factory=list)
    """The largest."""
    time: list[float] = field(default_factory=list)
    """Unix seconds at which that one ended."""
    lineage: list[int] = field(default_factory=list)
    values: dict[str, list[list[float | None]]] = field(default_factory=dict)
    """By name: means, and where a bucket has more than one step smallest and largest values."""


class History:
    """The values of every step that led to the present one. Safe to use from several threads."""

    def __init__(self, path: Path, damaged: Callable[[MetricError], None] | None = None) -> None:
        """`damaged` is told of every line that is none, which is then passed over; without it, such a line is an
        error."""
        self._where, self._tail, self._damaged = str(path), Tail(path), damaged
        self._lock = threading.Lock()
        self._table = Columns()
        self._begins: dict[int, int] = {}
        """The step at which each lineage begins."""
        self._changes: deque[int] = deque(maxlen=_REMEMBERED)
        """The smallest step that changed, for every change."""
        self.revision = self._began = time.time_ns() // 1_000_000
        """Counts the changes, from a number on that no earlier process has come to: who asks with one of those is sent
        everything."""

    # --- reading the file ---------------------------------------------------------------------------

    @property
    def read_share(self) -> float:
        """How much of the file has been read, 1 for all of it and 0 before anything was."""
        if self.revision == self._began:
            return 0.0
        return 1 - self._tail.behind / self._tail.size if self._tail.size else 1.0

    def follow(self) -> bool:
        """Read what was added, a few megabytes at most; True when there was anything. Raises MetricError where nobody
        is told of damage."""
        lines = self._tail.read()
        if lines:
            self.add(lines)
        return bool(lines)

    def add(self, lines: Iterable[bytes]) -> None:
        """Whole lines of the file, in its order. Raises MetricError for one that is damaged, where nobody is told."""
        with self._lock:
            changed = self._lay(lines)
            if changed is not None:
                self.revision += 1
                self._changes.append(changed)

    def _lay(self, lines: Iterable[bytes]) -> int | None:
        """Rows into columns; those that have the same names in the same order go in together. The smallest step that
        changed."""
        changed: list[int] = []
        block: list[tuple[float, ...]] = []
        names: tuple[str, ...] = ()
        newest = self._table.newest
        for row in self._rows(lines):
            step, lineage = int(row["step"]), int(row["lineage"])
            plain = step > newest and bool(self._begins) and lineage == max(self._begins)
            if not plain or tuple(row) != names or len(block) >= _BLOCK:
                self._table.append(names, block)
                block, names = [], tuple(row)
            if plain:
                block.append(tuple(row.values()))
                newest = step
                changed.append(step)
            else:
                changed += self._lay_out_of_turn(row, lineage, step)
                names, newest = (), self._table.newest
        self._table.append(names, block)
        return min(changed) if changed else None

    def _rows(self, lines: Iterable[bytes]) -> Iterator[dict[str, float]]:
        for line in lines:
            try:
                yield _decode(line, self._where)
            except MetricError as error:
                if self._damaged is None:
                    raise
                self._damaged(error)

    def _lay_out_of_turn(self, row: dict[str, float], lineage: int, step: int) -> list[int]:
        """A row that is not simply the next one: a lineage that begins, a second line of a step, a lost future. The
        steps that changed."""
        changed = []
        if step < self._begins.get(lineage, step + 1):
            self._begins[lineage] = step
            table = self._table
            lost = (table.lineages < lineage) & (table.steps > step)
            if lost.any():
                changed.append(int(table.steps[lost][0]))
                table.keep(~lost)
        if not any(newer > lineage and step > begun for newer, begun in self._begins.items()):
            self._table.put(row)
            changed.append(step)
        return changed

    def replace(self, other: History) -> None:
        """Whoever asks here with a revision of `other` is sent everything."""
        with self._lock:
            self.revision += other.revision + 1
            self._changes.clear()

    # --- asking it ----------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Everything that was ever recorded."""
        with self._lock:
            return sorted(self._table.place)

    @property
    def span(self) -> tuple[int, int]:
        """The first and the newest step; (0, 0) when there is none."""
        with self._lock:
            return self._span()

    def _span(self) -> tuple[int, int]:
        steps = self._table.steps
        return (int(steps[0]), int(steps[-1])) if len(steps) else (0, 0)

    def latest(self) -> dict[str, float]:
        """The newest value of every metric that has one."""
        with self._lock:
            found = {}
            for name, at in self._table.place.items():
                known = np.flatnonzero(np.isfinite(self._table.values[at]))
                if len(known):
                    found[name] = float(self._table.values[at, known[-1]])
            return found

    def table(self, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """All steps, [step], and the values of some metrics at each, [name, step]; NaN where there is none."""
        with self._lock:
            table = self._table
            values = np.full((len(names), table.rows), np.nan)
            for row, name in enumerate(names):
                if name in table.place:
                    values[row] = table.values[table.place[name]]
            return table.steps.copy(), values

    def step_at(self, time: float) -> int:
        """The step that was under way at a unix time: the first one that ended after it, else the newest."""
        with self._lock:
            table = self._table
            if not table.rows:
                return 0
            at = int(np.searchsorted(table.times, time))
            return int(table.steps[min(at, table.rows - 1)])

    def look(
        self,
        patterns: Sequence[str],
        most: int,
        since: tuple[int, int] | None = None,
        between: tuple[int, int] | None = None,
    ) -> Look:
        """The metrics whose names match a pattern, in at most `most` buckets over all steps or those `between`.

        `since`: revision and width that the asker has; only what has changed since is answered when the width is still
        the same.
        """
        with self._lock:
            first, last = self._span()
            if between is not None:
                first, last = max(first, between[0]), min(last, between[1])
            width = width_for(first, last, most)
            begin: int | None = first
            if since is not None and since[1] == width:
                begin = self._changed_since(since[0])
            if begin is None:
                return Look(self.revision, width)
            names = [name for name in sorted(self._table.place) if any(fnmatchcase(name, p) for p in patterns)]
            return self._cut(names, width, max(floor(begin, width), first), last)

    def _changed_since(self, revision: int) -> int | None:
        """The smallest step that has changed after `revision`; None for nothing. 0 when that is not remembered."""
        news = self.revision - revision
        if news == 0:
            return None
        return min(list(self._changes)[-news:]) if 0 < news <= len(self._changes) else 0

    def _cut(self, names: list[str], width: int, begin: int, last: int) -> Look:
        table = self._table
        low, high = int(np.searchsorted(table.steps, begin)), int(np.searchsorted(table.steps, last, side="right"))
        found = reduce(table.steps[low:high], table.values[[table.place[n] for n in names], low:high], width)
        ends = np.searchsorted(table.steps, found.last)
        return Look(
            self.revision,
            width,
            begin,
            found.first.tolist(),
            found.last.tolist(),
            np.round(table.times[ends], 1).tolist(),
            table.lineages[ends].tolist(),
            _series(names, found, width),
        )


def _decode(line: bytes, where: str) -> dict[str, float]:
    """Raises MetricError for what is no line of metrics."""
    try:
        try:
            row = _NUMBERS.decode(line)
        except msgspec.ValidationError:  # infinity and not-a-number are texts
            row = {name: float(value) for name, value in _TEXTS.decode(line).items()}
        if not all(0 <= row[key] < _LARGEST for key in KEYS):
            raise ValueError(f"{', '.join(KEYS)} must be numbers from 0 on")
    except KeyError as error:
        raise MetricError(f"{where}: not a line of metrics: it lacks {error}") from error
    except ValueError as error:  # msgspec's own, and that of bytes that are no text
        raise MetricError(f"{where}: not a line of metrics: {error}") from error
    return row


def _series(names: list[str], found: Buckets, width: int) -> dict[str, list[list[float | None]]]:
    kinds = [_short(kind) for kind in ((found.mean,) if width == 1 else (found.mean, found.low, found.high))]
    return {name: [kind[at] for kind in kinds] for at, name in enumerate(names)}


def _short(values: NDArray[Any]) -> list[list[float | None]]:
    """Five digits, which is more than a page can show; None where there is no number. `values` is [series, bucket]."""
    exact = values.astype(np.float64)
    known = np.isfinite(exact)
    size = np.abs(np.where(known & (exact != 0), exact, 1.0))
    digits = 4 - np.floor(np.log10(size)).astype(np.int64)
    # By whole powers of ten in either direction: the quotients are then the nearest numbers to what they say.
    up, down = 10.0 ** np.maximum(digits, 0), 10.0 ** np.maximum(-digits, 0)
    short = np.round(np.where(known, exact, 0.0) * up / down) * down / up
    rows: list[list[float | None]] = short.tolist()
    for row in np.flatnonzero(~known.all(axis=1)):
        rows[row] = [value if there else None for value, there in zip(rows[row], known[row].tolist(), strict=True)]
    return rows


def sampled(path: Path, lines: int) -> History:
    """A history of some lines, evenly spaced over the file: what a page shows while the whole is being read. Of damage
    tells whoever reads the whole."""
    history = History(path, damaged=lambda _: None)
    size = path.stat().st_size
    found: dict[bytes, None] = {}
    with path.open("rb") as file:
        for at in range(lines):
            file.seek(size * at // lines)
            if at:
                file.readline()
            line = file.readline()
            if line.endswith(b"\n"):
                found[line] = None
    history.add(found)
    return history
