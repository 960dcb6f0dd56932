"""Versions and the tree that they make, worked out anew: the checker must not share the product's arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class At(NamedTuple):
    """A version: a lineage and a step of it."""

    lineage: int
    step: int

    def __str__(self) -> str:
        return f"{self.lineage}.{self.step}"

    @classmethod
    def of(cls, text: str) -> At:
        """`LINEAGE.STEP`."""
        lineage, step = text.split(".")
        return cls(int(lineage), int(step))


def way_to(version: At, forks: Mapping[int, At]) -> dict[int, int]:
    """The lineages on the way from the first weights to `version`, and the last step that was made in each on it."""
    way: dict[int, int] = {}
    at: At | None = version
    while at is not None:
        way[at.lineage] = at.step
        origin = forks.get(at.lineage)
        # A step that lies before the fork was made further up, whatever lineage's name is asked for.
        at = None if origin is None else At(origin.lineage, min(origin.step, at.step))
    return way


def led_to(one: At, way: Mapping[int, int], forks: Mapping[int, At]) -> bool:
    """Whether the step that ended in `one` is on the way."""
    begins = forks[one.lineage].step if one.lineage in forks else 0
    return one.lineage in way and begins < one.step <= way[one.lineage]
