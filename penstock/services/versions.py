"""Names of policy weights: a lineage and a step in it."""

from __future__ import annotations

import re
from typing import NamedTuple

_TEXT = re.compile(r"(\d+)\.(\d+)")


class Version(NamedTuple):
    """The weights that exist after `step` train steps of `lineage`.

    A learner that falls back to an older checkpoint opens a new lineage, so that a step number that
    is reached twice names two different sets of weights. Compare with `staleness.lag`, not with `<`:
    the tuple order is only good for sorting.
    """

    lineage: int
    step: int

    def __str__(self) -> str:
        return f"{self.lineage}.{self.step}"

    @classmethod
    def parse(cls, text: str) -> Version:
        """Inverse of `str`. Raises ValueError for anything else."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"a version reads LINEAGE.STEP, for example 0.12; found {text!r}")
        return cls(int(found[1]), int(found[2]))

    def next(self) -> Version:
        """The version after one more train step."""
        return Version(self.lineage, self.step + 1)


FIRST = Version(0, 0)
