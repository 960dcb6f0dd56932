"""Rows of named numbers by rising step, kept column by column so that a long series is one piece of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

KEYS = ("lineage", "step", "time")
"""What every row has."""


class Columns:
    """A table that grows at its end, and now and then in the middle. NaN where a row has no value."""

    def __init__(self) -> None:
        self.rows = 0
        self.place: dict[str, int] = {}
        """Name to row of `values`."""
        self._steps = np.empty(0, np.int64)
        self._lineages = np.empty(0, np.int64)
        self._times = np.empty(0, np.float64)
        self._values = np.empty((0, 0), np.float32)

    @property
    def steps(self) -> NDArray[np.int64]:
        return self._steps[: self.rows]

    @property
    def lineages(self) -> NDArray[np.int64]:
        return self._lineages[: self.rows]

    @property
    def times(self) -> NDArray[np.float64]:
        """Unix seconds."""
        return self._times[: self.rows]

    @property
    def values(self) -> NDArray[np.float32]:
        """[name, row]"""
        return self._values[:, : self.rows]

    @property
    def newest(self) -> int:
        """The largest step; -1 without any row."""
        return int(self._steps[self.rows - 1]) if self.rows else -1

    def append(self, names: Sequence[str], block: Sequence[Sequence[float]]) -> None:
        """Rows that all have the same names, KEYS among them, with steps beyond the newest."""
        if not block:
            return
        by_name = dict(zip(names, np.array(block, np.float64).T, strict=True))
        own = [name for name in names if name not in KEYS]
        columns = [self._column(name) for name in own]
        here = slice(self.rows, self.rows + len(block))
        self._reserve(here.stop)
        self._steps[here], self._lineages[here] = by_name["step"], by_name["lineage"]
        self._times[here] = by_name["time"]
        self._values[:, here] = np.nan
        if columns:
            self._values[columns, here] = np.stack([by_name[name] for name in own])
        self.rows = here.stop

    def put(self, row: Mapping[str, float]) -> None:
        """One row anywhere; joined with the one of the same step, if there is one."""
        step = int(row["step"])
        at = int(np.searchsorted(self.steps, step))
        if at == self.rows or self._steps[at] != step:
            self._open(at)
        self._steps[at], self._lineages[at], self._times[at] = step, int(row["lineage"]), row["time"]
        for name, value in row.items():
            if name not in KEYS:
                column = self._column(name)
                self._values[column, at] = value

    def keep(self, wanted: NDArray[np.bool_]) -> None:
        """Forget the other rows; `wanted` is [row]."""
        places = np.flatnonzero(wanted)
        for column in (self._steps, self._lineages, self._times):
            column[: len(places)] = column[places]
        self._values[:, : len(places)] = self._values[:, places]
        self.rows = len(places)

    def _open(self, at: int) -> None:
        """Room for a row at `at`."""
        self._reserve(self.rows + 1)
        for column in (self._steps, self._lineages, self._times):
            column[at + 1 : self.rows + 1] = column[at : self.rows].copy()
        self._values[:, at + 1 : self.rows + 1] = self._values[:, at : self.rows].copy()
        self._values[:, at] = np.nan
        self.rows += 1

    def _column(self, name: str) -> int:
        at = self.place.setdefault(name, len(self.place))
        if at >= len(self._values):
            more = np.full((max(32, len(self._values)), self._values.shape[1]), np.nan, np.float32)
            self._values = np.concatenate([self._values, more])
        return at

    def _reserve(self, rows: int) -> None:
        have = len(self._steps)
        if rows <= have:
            return
        more = max(1024, have, rows - have)
        self._steps = np.concatenate([self._steps, np.empty(more, np.int64)])
        self._lineages = np.concatenate([self._lineages, np.empty(more, np.int64)])
        self._times = np.concatenate([self._times, np.empty(more, np.float64)])
        spare = np.full((len(self._values), more), np.nan, np.float32)
        self._values = np.concatenate([self._values, spare], axis=1)
