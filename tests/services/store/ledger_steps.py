"""Small moves that the tests of the ledger are written in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from penstock.services.replay import LedgerRules, ReplayStore, Ticket
from penstock.services.versions import FIRST, Version

RULES = LedgerRules(max_lag=1, groups_per_step=4, prompts=None, max_bytes=10**9)
_requests = itertools.count()


def reserve(
    store: ReplayStore, want: int, *, worker: str = "w", version: Version = FIRST, lease: float = 60.0
) -> tuple[Ticket, ...]:
    """New tickets, under a request id that was never used before."""
    return store.reserve(worker, version, want, lease, f"request-{next(_requests)}").tickets


def play(store: ReplayStore, want: int, *, version: Version = FIRST, size: int = 10) -> list[int]:
    """Reserve and put at once; the indices."""
    tickets = reserve(store, want, version=version)
    for ticket in tickets:
        store.put(ticket, payload(ticket.index, size), version)
    return [ticket.index for ticket in tickets]


def payload(index: int, size: int = 10) -> bytes:
    return b"%0*d" % (size, index)


def step(store: ReplayStore, version: Version, want: int) -> Version:
    """A whole train step from `version`: take, then advance."""
    assert len(store.take(version, want).groups) == want
    store.advance(version.next())
    return version.next()


def taken(store: ReplayStore, version: Version, want: int) -> list[int]:
    return [group.index for group in store.take(version, want).groups]


def states(store: ReplayStore) -> dict[str, int]:
    """The states that are not empty, after a look at the invariant."""
    counts = store.counts()
    assert counts.balanced, counts
    return {state: count for state, count in counts.by_state.items() if count}


def indices(tickets: Sequence[Ticket]) -> list[int]:
    return [ticket.index for ticket in tickets]
