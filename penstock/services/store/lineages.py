"""The lineages as one client of the store last saw them, and the numbers that the scripts need of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property

from penstock.services import staleness
from penstock.services.contracts import StoreError
from penstock.services.staleness import Forks
from penstock.services.versions import Version

_ENDLESS = 2**53
"""A step beyond all others that Lua's numbers still hold exactly."""


def lineages(forks: Forks) -> set[int]:
    """Every lineage that is known: the first, those that forked, and those they forked from."""
    return {0, *forks, *(version.lineage for version in forks.values())}


@dataclass(frozen=True)
class Tree:
    """The version tree."""

    lineage: int
    """The newest, in which the learner works; -1 before any."""
    forks: Forks = field(default_factory=dict)

    def common(self, now: Version) -> dict[int, int]:
        """`staleness.common_step` of `now` with every lineage that is related to it."""
        steps = {}
        for lineage in lineages(self.forks):
            try:
                steps[lineage] = staleness.common_step(now, lineage, self.forks)
            except ValueError:  # its fork was lost together with an earlier store
                continue
        return steps

    def reach(self, checkpoint: Version) -> dict[int, int]:
        """`common` of a checkpoint that a learner of this tree resumes from. Raises StoreError for one that has
        nothing to do with the newest lineage."""
        steps = self.common(checkpoint)
        if self.lineage >= 0 and self.lineage not in steps:
            raise StoreError(
                f"reconcile: the checkpoint is of version {checkpoint}, related to none of the lineages that the store "
                f"knows ({', '.join(map(str, sorted(lineages(self.forks))))}): does it belong to another run?"
            )
        return steps

    @cached_property
    def current(self) -> dict[int, int]:
        """`common` for any version of the newest lineage; the scripts cut it off at the version's own step."""
        return self.common(Version(self.lineage, _ENDLESS))

    @cached_property
    def current_text(self) -> str:
        return json.dumps(self.current)
