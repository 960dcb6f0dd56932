"""What a rule about cells that do not fit is: what it judges, which keys it looks at, what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from penstock.learner.config import AlgorithmSection


@dataclass(frozen=True)
class Sizes:
    """What of the rest of a run matters to its algorithm."""

    group_size: int
    groups_per_step: int
    updates: int
    """Updates per train step: epochs × mini-batches."""
    max_tokens: int
    """Longest answer."""
    steps: int | None = None
    """Train steps of the run, where they are limited."""


class Contradiction(NamedTuple):
    """One of them."""

    key: str
    """Path in the run file."""
    problem: str
    allowed: str = ""
    remedy: str = ""
    """All that has to be set for this to be mended, in the words of a run file."""
    level: Literal["error", "warning"] = "error"
    settles: tuple[str, ...] = ()
    """Keys that the remedy sets too, so that nothing more need be said of them."""


Judge = Callable[["AlgorithmSection", Sizes], Contradiction | None]


class Rule(NamedTuple):
    """One way in which cells may not fit."""

    judge: Judge
    keys: tuple[str, ...]
    """Of the run file, all that the judgement depends on; `kind` stands for what a cell says of itself."""

    def can_be_judged(self, unknown: frozenset[str]) -> bool:
        """Whether none of its keys, and nothing around one, is among the `unknown`."""
        return unknown.isdisjoint(part for key in self.keys for part in with_those_around(key))


def with_those_around(key: str) -> Iterator[str]:
    """`a.b.c` as itself, a.b and a."""
    parts = key.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def about(*keys: str) -> Callable[[Judge], Rule]:
    """Declares a rule that depends on `keys`."""
    return lambda judge: Rule(judge, keys)
