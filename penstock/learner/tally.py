"""Sums of per-token facts over micro-batches, then over ranks, and the metrics made of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from penstock.learner.ranks import Team


class Tally:
    """Sums and maxima by name. Every rank must add the same names in the same order, with or without tokens."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Sum and number of the `values` where `mask`."""
        values = torch.where(mask, values.detach().double(), 0.0)
        both = torch.stack([values.sum(), mask.sum().double()])
        self._sums[name] = self._sums[name] + both if name in self._sums else both

    def add_number(self, name: str, value: Tensor | float, count: float = 1.0) -> None:
        """A value that is a sum already, of `count` things."""
        both = torch.tensor([float(value), count], dtype=torch.float64)
        self._sums[name] = self._sums[name].cpu() + both if name in self._sums else both

    def highest(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Largest of the `values` where `mask`."""
        value = torch.where(mask, values.detach().double(), -torch.inf).max()
        self._maxima[name] = torch.maximum(self._maxima[name], value) if name in self._maxima else value

    def over(self, team: Team) -> Totals:
        """The totals of all ranks, on every rank."""
        sums = np.stack([s.cpu().numpy() for s in self._sums.values()]) if self._sums else np.zeros((0, 2))
        maxima = np.asarray([float(m) for m in self._maxima.values()])
        return Totals(
            dict(zip(self._sums, team.sum(sums).tolist(), strict=True)),
            dict(zip(self._maxima, team.max(maxima).tolist(), strict=True)),
        )


class Totals:
    """What was tallied, over all ranks."""

    def __init__(self, sums: dict[str, list[float]], maxima: dict[str, float]) -> None:
        self._sums, self._maxima = sums, maxima

    def sum(self, name: str) -> float:
        return self._sums[name][0]

    def count(self, name: str) -> float:
        return self._sums[name][1]

    def means(self) -> dict[str, float]:
        """The mean of everything that had at least one entry."""
        return {name: total / count for name, (total, count) in self._sums.items() if count > 0}

    def maxima(self) -> dict[str, float]:
        """The largest of everything that had at least one entry."""
        return {name: value for name, value in self._maxima.items() if value > -np.inf}
