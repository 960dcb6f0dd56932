"""Rows of several sources as one sequence, in an order that follows from weights and a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from penstock.services.logprobs import Row
from penstock.services.trajectory import TokenIds


class Pair(Protocol):
    """A prompt and the response to imitate."""

    @property
    def prompt(self) -> TokenIds: ...

    @property
    def response(self) -> TokenIds: ...


class Pairs(Protocol):
    """A source of pairs, such as `services.data.PairSource`."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: int, /) -> Pair: ...


@dataclass(frozen=True)
class Mixture:
    """Sources in proportion to their weights; one source is simply gone through epoch by epoch."""

    sources: Sequence[Pairs]
    weights: Sequence[float]

    def __len__(self) -> int:
        """Rows of all sources: what one epoch is made of."""
        return sum(len(source) for source in self.sources)

    def rows(self, count: int, seed: int) -> Iterator[Row]:
        """`count` rows. Every source follows a new permutation of its own each time it is gone through."""
        drawn = [0] * len(self.sources)
        orders: list[list[int]] = [[] for _ in self.sources]
        for _ in range(count):
            # The source that is furthest behind its share.
            which = min(range(len(drawn)), key=lambda i: ((drawn[i] + 1) / self.weights[i], i))
            source, place = self.sources[which], drawn[which] % len(self.sources[which])
            if place == 0:
                random = np.random.default_rng([seed, which, drawn[which] // len(source)])
                orders[which] = random.permutation(len(source)).tolist()
            drawn[which] += 1
            pair = source[orders[which][place]]
            yield pair.prompt, pair.response
