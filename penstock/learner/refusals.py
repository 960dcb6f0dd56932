"""What the rollout workers drop before it reaches the learner: how much, why, and when waiting on is pointless."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from penstock.services.replay import ReplayStore

LOOK = 1.0
"""Seconds between looks at the ledger's counts."""
_AGED = "stale"
"""The one reason that says nothing of those to come: they are played with newer weights."""


class Refusals:
    """Groups that workers refused, by the ledger's counts: those of a step, and those in a row, with no group come in
    between. A row of `groups_per_step`, and each that is twice as long as the last one told, is told to `warn`; one of
    `refill_attempts × groups_per_step` is a reason to end."""

    def __init__(
        self, store: ReplayStore, groups_per_step: int, refill_attempts: int, warn: Callable[[str], object]
    ) -> None:
        self._store, self._warn = store, warn
        self._shortest, self._longest = groups_per_step, refill_attempts * groups_per_step
        self._warn_at = groups_per_step
        self._told: Counter[str] = Counter()
        """The counts at the last `of_step`."""
        self._before: Counter[str] = Counter()
        """The counts at the beginning of the row."""
        self._row: Counter[str] = Counter()
        self._causes: dict[str, str] = {}
        self._looked = 0.0

    def begin(self) -> None:
        """The learner has agreed with the store where to go on; what was refused until now was told before."""
        self.came()
        self._told = self._before

    def of_step(self) -> Counter[str]:
        """By reason, since this was last asked."""
        before, self._told = self._told, Counter(self._store.counts().refused)
        return self._told - before

    def came(self) -> None:
        """A group has come: the row has ended."""
        self._before, self._warn_at = Counter(self._store.counts().refused), self._shortest
        self._row.clear()

    def hopeless(self, at_once: bool = False) -> str:
        """Why there is no sense in waiting on, or nothing; looks at the ledger now and then, or `at_once`."""
        if not at_once and time.monotonic() - self._looked < LOOK:
            return ""
        self._looked = time.monotonic()
        counts = self._store.counts()
        self._row, self._causes = Counter(counts.refused) - self._before, dict(counts.causes)
        length = self._row.total() - self._row[_AGED]
        limit = f"{self._longest} (staleness.refill_attempts × learner.groups_per_step)"
        if length >= self._longest:
            return (
                f"starved: {self}; the limit is {limit}. Mend the cause and go on with penstock resume; if groups will "
                "come with more patience, raise staleness.refill_attempts"
            )
        if length >= self._warn_at:
            self._warn_at = 2 * length
            self._warn(f"{self}; the run ends at {limit}")
        return ""

    def __bool__(self) -> bool:
        """Whether some were refused in a row, as of the last look."""
        return bool(self._row)

    def __str__(self) -> str:
        """The row as of the last look: how many, why, and what the most frequent reason's last cause was."""
        if not self._row:
            return "the rollout workers have dropped none since the last one came"
        reasons = ", ".join(f"{n} {reason}" for reason, n in self._row.most_common())
        worst = self._row.most_common(1)[0][0]
        cause = " ".join(self._causes.get(worst, "").split()) or "not said"
        return (
            f"the rollout workers have dropped {self._row.total()} groups in a row ({reasons}) and handed on none; "
            f"the last cause of {worst}: {cause}"
        )
