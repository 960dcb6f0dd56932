"""The driver's looks at the ledger, and what is said when the store does not answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from penstock.rollout.leases import holder
from penstock.services.contracts import StoreError
from penstock.services.replay import Closed, LedgerCounts

if TYPE_CHECKING:
    from penstock.deploy.fleet import Member
    from penstock.deploy.journal import Journal
    from penstock.deploy.storehost import StoreHost


class Seen(NamedTuple):
    """What a look found."""

    counts: LedgerCounts
    closed: Closed


class StoreWatch:
    """Looks by the host's `glance`, whose deadline is short. A store that is away is not waited for here, and told of
    once, at once; whoever needs it waits for `deadline` seconds. The host is told of every look."""

    def __init__(self, host: StoreHost, journal: Journal, deadline: float) -> None:
        self._host, self._journal, self._deadline = host, journal, deadline
        self._away: float | None = None
        self._gone: list[str] = []

    def lapse(self, worker: Member) -> None:
        """The process of `worker` is gone: what it holds goes back at the next look that is answered, instead of when
        its leases end."""
        self._gone.append(holder(worker.name, worker.restarts))

    def look(self) -> Seen | None:
        """None while the store does not answer."""
        glance = self._host.glance
        try:
            glance.expire()
            while self._gone:
                glance.lapse(self._gone[0])
                del self._gone[0]
            seen = Seen(glance.counts(), glance.gate())
        except StoreError as error:
            self._host.is_silent()
            if self._away is None:
                self._away = time.monotonic()
                patience = f"{self._deadline:g} s (store.deadline)"
                self._journal.warn(f"the store is away: {error}. Whoever needs it waits for {patience}")
            return None
        self._host.answers()
        if self._away is not None:
            away, self._away = time.monotonic() - self._away, None
            self._journal.tell("store_back", f"the store answers again, after {away:.1f} s")
        return seen
