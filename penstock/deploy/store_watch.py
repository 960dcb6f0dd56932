"""The driver's looks at the ledger, and what is said when the store does not answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from penstock.services.contracts import StoreError
from penstock.services.replay import Closed, LedgerCounts, ReplayStore

if TYPE_CHECKING:
    from penstock.deploy.journal import Journal


class Seen(NamedTuple):
    """What a look found."""

    counts: LedgerCounts
    closed: Closed


class StoreWatch:
    """Looks by `glance`, whose deadline is short. A store that is away is not waited for here, and told of once, at
    once; whoever needs it waits for `deadline` seconds."""

    def __init__(self, glance: ReplayStore, journal: Journal, deadline: float) -> None:
        self._glance, self._journal, self._deadline = glance, journal, deadline
        self._away: float | None = None

    def look(self) -> Seen | None:
        """None while the store does not answer."""
        try:
            self._glance.expire()
            seen = Seen(self._glance.counts(), self._glance.gate())
        except StoreError as error:
            if self._away is None:
                self._away = time.monotonic()
                patience = f"{self._deadline:g} s (store.deadline)"
                self._journal.warn(f"the store is away: {error}. Whoever needs it waits for {patience}")
            return None
        if self._away is not None:
            away, self._away = time.monotonic() - self._away, None
            self._journal.tell("store_back", f"the store answers again, after {away:.1f} s")
        return seen
