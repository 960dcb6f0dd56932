"""A batch dealt out: which rows make a mini-batch, which rank computes them, in which micro-batches. On rank 0."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from penstock.learner.batch import Batch
from penstock.services.logprobs import plan_micro_batches


@dataclass(frozen=True)
class Share:
    """One rank's part of a batch. All ranks have the same number of mini-batches and of micro-batches in each."""

    batch: Batch
    mini_batches: list[list[list[int]]]
    """Mini-batch → micro-batch → rows of `batch`; a micro-batch without rows keeps a rank in step with the others."""
    epochs: list[list[int]]
    """Order of the mini-batches in every pass over the batch."""
    shown: list[int] = field(default_factory=list)
    """Rows of `batch` that people will look at token by token."""

    @property
    def updates(self) -> int:
        return sum(len(order) for order in self.epochs)

    def to_bytes(self) -> bytes:
        return self.batch.to_bytes(mini_batches=self.mini_batches, epochs=self.epochs, shown=self.shown)

    @classmethod
    def from_bytes(cls, data: bytes) -> Share:
        """Inverse of `to_bytes`. Raises BatchError."""
        batch, facts = Batch.from_bytes(data)
        return cls(batch, facts["mini_batches"], facts["epochs"], facts["shown"])


def weigh(batch: Batch, mini_batches: Sequence[Sequence[int]], reduction: Callable[[Tensor, Tensor], Tensor]) -> Batch:
    """The batch with the weight of every row, from the reduction over the whole mini-batch that the row is in."""
    weights = np.zeros(len(batch), np.float64)
    for rows in mini_batches:
        part = batch.select(rows)
        weights[list(rows)] = reduction(torch.from_numpy(part.counts), torch.from_numpy(part.groups)).numpy()
    return batch.with_columns(weights=weights)


def split_groups(batch: Batch, parts: int, seed: object) -> list[list[int]]:
    """Rows of each mini-batch: whole groups, shuffled by `seed`, in as equal numbers as they can be."""
    groups = list(dict.fromkeys(batch.groups.tolist()))
    random.Random(str(seed)).shuffle(groups)
    part_of = {group: place * parts // len(groups) for place, group in enumerate(groups)}
    rows: list[list[int]] = [[] for _ in range(parts)]
    for row, group in enumerate(batch.groups.tolist()):
        rows[part_of[group]].append(row)
    return [part for part in rows if part]


def balance(tokens: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices for every rank, with nearly equal sums of `tokens`: longest first, each to the least loaded."""
    load = [0] * ranks
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        rank = min(range(ranks), key=lambda r: (load[r], r))
        dealt[rank].append(index)
        load[rank] += tokens[index]
    return dealt


def deal(
    batch: Batch,
    mini_batches: Sequence[Sequence[int]],
    ranks: int,
    token_budget: int,
    epochs: int,
    seed: object,
    shown: Sequence[int] = (),
) -> list[Share]:
    """The share of every rank. `shown`: rows of `batch` that people will look at token by token."""
    owned: list[list[int]] = [[] for _ in range(ranks)]
    plans: list[list[list[list[int]]]] = [[] for _ in range(ranks)]
    row_tokens = batch.row_tokens.tolist()
    for rows in mini_batches:
        dealt = balance([row_tokens[row] for row in rows], ranks)
        micro = [plan_micro_batches([row_tokens[rows[i]] for i in mine], token_budget) for mine in dealt]
        passes = max(len(plan) for plan in micro)
        for rank, (mine, plan) in enumerate(zip(dealt, micro, strict=True)):
            first = len(owned[rank])
            owned[rank] += [rows[i] for i in mine]
            plans[rank].append([[first + i for i in part] for part in plan] + [[]] * (passes - len(plan)))
    order = random.Random(f"{seed} order")
    orders = [order.sample(range(len(mini_batches)), len(mini_batches)) for _ in range(epochs)]
    return [
        Share(batch.select(mine), plan, orders, [place for place, row in enumerate(mine) if row in shown])
        for mine, plan in zip(owned, plans, strict=True)
    ]
