"""What a chaos run must never find."""

from __future__ import annotations

from typing import NamedTuple


class Violation(NamedTuple):
    """One broken promise."""

    promise: str
    """A word for machines: lost, twice, backwards, balance, goal, stuck, ended, left_over."""
    found: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.found}"
