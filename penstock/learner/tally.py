"""Sums of per-token facts over micro-batches, then over ranks, and the metrics made of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.learner.ranks import Numbers, Team

Columns = dict[str, NDArray[np.float64]]
"""A table by its columns."""


class Tally:
    """Sums and maxima by name. Every rank must add the same names in the same order, with or without tokens.

    Everything stays on the device it was computed on until `over`, so that nothing waits for a number in between.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}
        self._columns: dict[str, tuple[str, ...]] = {}

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Sum and number of the `values` where `mask`."""
        values = torch.where(mask, values.detach().double(), 0.0)
        self._sum(name, torch.stack([values.sum(), mask.sum().double()]))

    def add_number(self, name: str, value: Tensor | float, count: float = 1.0) -> None:
        """A value that is a sum already, of `count` things."""
        total = torch.as_tensor(value, dtype=torch.float64).detach()
        self._sum(name, torch.stack([total, total.new_tensor(count)]))

    def highest(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Largest of the `values` where `mask`."""
        self._highest(name, torch.where(mask, values.detach().double(), -torch.inf).max())

    def add_table(self, name: str, columns: Sequence[str], values: Tensor) -> None:
        """A table [rows, columns] of sums."""
        self._columns[name] = tuple(columns)
        self._sum(name, values.double())

    def highest_table(self, name: str, columns: Sequence[str], values: Tensor) -> None:
        """A table [rows, columns] of maxima; −inf where there was nothing."""
        self._columns[name] = tuple(columns)
        self._highest(name, values.double())

    def over(self, team: Team) -> Totals:
        """The totals of all ranks, on every rank."""
        sums, maxima = team.sum(_flat(self._sums)), team.max(_flat(self._maxima))
        return Totals(_shaped(sums, self._sums), _shaped(maxima, self._maxima), self._columns)

    def _sum(self, name: str, values: Tensor) -> None:
        before = self._sums.get(name)
        # A number may have come from the CPU and the next one from a device.
        self._sums[name] = values if before is None else before.to(values.device) + values

    def _highest(self, name: str, values: Tensor) -> None:
        before = self._maxima.get(name)
        self._maxima[name] = values if before is None else torch.maximum(before, values)


class Totals:
    """What was tallied, over all ranks."""

    def __init__(
        self, sums: dict[str, Numbers], maxima: dict[str, Numbers], columns: dict[str, tuple[str, ...]]
    ) -> None:
        self._sums, self._maxima, self._columns = sums, maxima, columns

    def sum(self, name: str) -> float:
        return float(self._sums[name][0])

    def count(self, name: str) -> float:
        return float(self._sums[name][1])

    def means(self) -> dict[str, float]:
        """The mean of everything that had at least one entry."""
        pairs = {name: both for name, both in self._sums.items() if name not in self._columns}
        return {name: float(total / count) for name, (total, count) in pairs.items() if count > 0}

    def maxima(self) -> dict[str, float]:
        """The largest of everything that had at least one entry."""
        single = {name: float(value) for name, value in self._maxima.items() if name not in self._columns}
        return {name: value for name, value in single.items() if value > -np.inf}

    def table(self, name: str) -> Columns:
        """A table's columns [rows], of sums or of maxima; none where nothing was added."""
        found = self._sums.get(name, self._maxima.get(name))
        return {} if found is None else dict(zip(self._columns[name], found.T, strict=True))


def _flat(values: dict[str, Tensor]) -> Numbers:
    """All numbers end to end: one exchange between the ranks instead of many."""
    return np.concatenate([np.zeros(0), *(value.cpu().numpy().reshape(-1) for value in values.values())])


def _shaped(numbers: Numbers, like: dict[str, Tensor]) -> dict[str, Numbers]:
    """Inverse of `_flat`."""
    parts = np.split(numbers, np.cumsum([value.numel() for value in like.values()])[:-1]) if like else []
    return {name: part.reshape(tuple(like[name].shape)) for name, part in zip(like, parts, strict=True)}
