"""The prompt stream: a pure function from an index to a prompt, over a mixture of sources.

Nothing is drawn and nothing is remembered: the n-th prompt of a run is the same after a resume, on any
worker, in any order of asking. The mixture runs through a fixed pattern in which every source has slots in
proportion to its weight, evenly spread; rows of a source follow a permutation of their own in each epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.services.trajectory import Prompt, TokenIds

PATTERN = 1000
"""Slots of a mixture's pattern: weights are met to 0.1 %."""


class Row(Protocol):
    """One tokenised row of a source."""

    @property
    def source(self) -> str: ...
    @property
    def row(self) -> int: ...
    @property
    def tokens(self) -> TokenIds: ...
    @property
    def text(self) -> str: ...
    @property
    def columns(self) -> dict[str, Any]: ...


class Source(Protocol):
    """A dataset that is already tokenised, with random access."""

    @property
    def weight(self) -> float: ...
    def __len__(self) -> int: ...
    def __getitem__(self, item: int, /) -> Row: ...


@dataclass(frozen=True)
class _Phase:
    """A stretch of the stream in which the same sources take part."""

    first: int
    """Index of the stream at which it begins."""
    slots: NDArray[np.int64]
    """Source of each slot of the pattern."""
    ranks: NDArray[np.int64]
    """How many earlier slots of the pattern belong to the same source."""
    counts: NDArray[np.int64]
    """Slots per source; 0 for sources that are used up."""
    used: NDArray[np.int64]
    """Rows each source had given before."""

    def place(self, index: int) -> tuple[int, int]:
        """(source, how many rows it has given before) at an index of the stream."""
        rounds, slot = divmod(index - self.first, len(self.slots))
        source = self.slots[slot]
        return int(source), int(self.used[source] + rounds * self.counts[source] + self.ranks[slot])

    def until(self, source: int, budget: int) -> int:
        """The index after the one at which `source` gives its `budget`-th row, counted from the stream's start."""
        rounds, rank = divmod(budget - 1 - int(self.used[source]), int(self.counts[source]))
        slot = int(np.flatnonzero(self.slots == source)[rank])
        return self.first + rounds * len(self.slots) + slot + 1

    def used_at(self, index: int) -> NDArray[np.int64]:
        """Rows each source has given before `index`."""
        rounds, slot = divmod(index - self.first, len(self.slots))
        rest = np.bincount(self.slots[:slot], minlength=len(self.counts))
        return self.used + rounds * self.counts + rest


class PromptStream:
    """`stream[index]` is the index-th prompt of the run."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        seed: int,
        epochs: int | None = None,
        at_end: Literal["drop", "stop"] = "drop",
        shuffle: bool = True,
    ) -> None:
        """epochs: how often every source may be read, None for without end. at_end: when one source is used up,
        `drop` goes on with the others, `stop` ends the stream. Raises ValueError for a source without rows."""
        empty = [name for name, source in sources.items() if len(source) == 0]
        if empty or not sources:
            raise ValueError(f"a prompt stream needs rows; {'source ' + repr(empty[0]) if empty else 'it'} has none")
        self._sources = list(sources.values())
        self._sizes = np.asarray([len(source) for source in self._sources], np.int64)
        self._seed = seed
        self._shuffle = shuffle
        self._phases, self._length = self._plan(epochs, at_end)
        self._order = lru_cache(maxsize=2 * len(self._sources))(self._permutation)

    @property
    def length(self) -> int | None:
        """How many prompts there are; None for a stream without end."""
        return self._length

    def __getitem__(self, index: int) -> Prompt:
        """Raises IndexError beyond the end."""
        if index < 0 or (self._length is not None and index >= self._length):
            raise IndexError(f"prompt {index} is outside of the stream, which has {self._length} prompts")
        phase = next(p for p in reversed(self._phases) if p.first <= index)
        source, ordinal = phase.place(index)
        epoch, position = divmod(ordinal, int(self._sizes[source]))
        item = int(self._order(source, epoch)[position]) if self._shuffle else position
        row = self._sources[source][item]
        return Prompt(
            index=index,
            source=row.source,
            row=row.row,
            epoch=epoch,
            tokens=row.tokens,
            text=row.text,
            columns=row.columns,
        )

    def _permutation(self, source: int, epoch: int) -> NDArray[np.int64]:
        order = np.arange(int(self._sizes[source]), dtype=np.int64)
        np.random.default_rng([self._seed, source, epoch]).shuffle(order)
        return order

    def _plan(self, epochs: int | None, at_end: str) -> tuple[list[_Phase], int | None]:
        """The phases, and the stream's length."""
        weights = np.asarray([source.weight for source in self._sources], np.float64)
        phase = _phase(0, weights, np.zeros(len(weights), np.int64))
        if epochs is None:
            return [phase], None
        budgets = epochs * self._sizes
        phases = []
        while True:
            phases.append(phase)
            live = np.flatnonzero(phase.counts)
            end = min(phase.until(int(k), int(budgets[k])) for k in live)
            used = phase.used_at(end)
            weights = np.where(used < budgets, weights, 0.0)
            if at_end == "stop" or not weights.any():
                return phases, end
            phase = _phase(end, weights, used)


def _phase(first: int, weights: NDArray[np.float64], used: NDArray[np.int64]) -> _Phase:
    counts = _slots(weights)
    # Each source's slots at even distances, all sources merged: ties go to the source named first.
    times = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in counts])
    owners = np.repeat(np.arange(len(counts)), counts)
    slots = owners[np.argsort(times, kind="stable")]
    ranks = np.zeros(len(slots), np.int64)
    for source in np.flatnonzero(counts):
        ranks[slots == source] = np.arange(counts[source])
    return _Phase(first, slots, ranks, counts, used)


def _slots(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Slots per source by largest remainder; at least one for every weight above 0."""
    live: Sequence[int] = np.flatnonzero(weights).tolist()
    if len(live) == 1:
        return (weights > 0).astype(np.int64)
    shares = weights / weights.sum() * PATTERN
    counts = np.floor(shares).astype(np.int64)
    for source in np.argsort(counts - shares, kind="stable")[: PATTERN - int(counts.sum())]:
        counts[source] += 1
    counts[live] = np.maximum(counts[live], 1)
    return np.asarray(counts // np.gcd.reduce(counts[live]), np.int64)
