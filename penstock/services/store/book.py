"""The state of the ledger in memory: entries, counters, and the questions that change nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from penstock.services import staleness
from penstock.services.contracts import Fenced, StoreError
from penstock.services.replay import STATES, Closed, LedgerCounts, LedgerRules, Reservation, Ticket
from penstock.services.staleness import Forks
from penstock.services.store.registry import Registry
from penstock.services.versions import FIRST, Version

OUTSTANDING = ("returned", "reserved", "stored", "taken")
REPLY_KEPT = 300.0
"""Seconds for which the answer to a reservation is kept for a repetition."""
F = TypeVar("F", bound=Callable[..., Any])


def atomic(method: F) -> F:
    """Hold the store's lock for the whole call, as a script on the server does."""

    @wraps(method)
    def locked(self: Book, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return cast(F, locked)


@dataclass
class Entry:
    """One prompt that was issued and is neither committed nor dropped."""

    state: str
    fence: int = 0
    expires: float = 0.0
    holder: str = ""
    """The worker that its lease was given to last."""
    lapsed: bool = False
    """The lease has ended, nobody else has been given the group: its last holder may still go on."""
    payload: bytes = b""
    binding: Version = FIRST
    step: int = 0
    """The step it was taken for (state taken) or that used it (state applied)."""
    since: float = 0.0
    """Unix seconds at which it became stored (state stored)."""
    turn: int = 0
    """Among the stored: the lowest first, and of the same turn the oldest prompt. Below 0 what is delivered again."""

    def store(self, now: float, turn: int = 0) -> None:
        """To the state stored, at `now`."""
        self.state, self.since, self.turn = "stored", now, turn

    @property
    def leased(self) -> bool:
        """Whether the holder of its fencing token may go on."""
        return self.state == "reserved" or (self.state == "returned" and self.lapsed)


class Book(Registry):
    """What `MemoryStore` changes."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self._lock = threading.RLock()
        self._clock = clock
        self._rules: LedgerRules | None = None
        self._now: Version | None = None
        self._forks: dict[int, Version] = {}
        self._entries: dict[int, Entry] = {}
        self._ahead: set[int] = set()
        self._issued = self._cursor = self._fence = self._committed = self._redelivered = 0
        self._drops: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._causes: dict[str, str] = {}
        self._draining = self._by_hand = False
        self._last_commit: Version | None = None
        self._reconciled: tuple[str, Version] | None = None
        self._replies: dict[str, tuple[str, float, Reservation]] = {}
        self._arrived = threading.Event()
        """A group was put since the learner waited last."""
        self._waiting: set[str] = set()
        """Workers that got nothing and listen for room."""
        self._told: set[str] = set()
        """Those for whom there was room since."""
        self._opening = threading.Condition(self._lock)

    def await_opening(self, worker: str, seconds: float) -> bool:
        with self._opening:
            told = self._opening.wait_for(lambda: worker in self._told, seconds)
            self._told.discard(worker)
            return told

    def _open(self, places: int) -> None:
        for _ in range(min(places, len(self._waiting))):
            self._told.add(self._waiting.pop())
        self._opening.notify_all()

    def _open_to_all(self) -> None:
        self._open(len(self._waiting))

    def await_arrival(self, seconds: float) -> None:
        self._arrived.wait(seconds)
        self._arrived.clear()

    @atomic
    def published(self) -> Version:
        return self._at()

    @atomic
    def forks(self) -> Forks:
        return dict(self._forks)

    @atomic
    def gate(self) -> Closed:
        self._at()
        return self._closed(0)

    @atomic
    def counts(self) -> LedgerCounts:
        now = self._at()
        states = Counter(entry.state for entry in self._entries.values())
        states["committed"], states["dropped"] = self._committed, self._drops.total()
        return LedgerCounts(
            issued=self._issued,
            by_state={state: states[state] for state in STATES},
            dropped={reason: count for reason, count in self._drops.items() if count},
            payload_bytes=self._bytes(),
            published=now,
            redelivered=self._redelivered,
            refused=dict(self._refused),
            causes=dict(self._causes),
            queue_age=self._queue_age(),
        )

    def _queue_age(self) -> float:
        since = [entry.since for entry in self._entries.values() if entry.state == "stored"]
        return max(0.0, self._clock() - min(since)) if since else 0.0

    def _closed(self, behind: int) -> Closed:
        """Why no new prompt may start at a worker that lags by `behind`."""
        rules = self._run_rules()
        self._skip_issued()
        if self._draining:
            return "draining"
        if rules.prompts is not None and self._cursor >= rules.prompts:
            return "data_end"
        if self._by_hand:
            return "held"
        if not staleness.admits(len(self._in(*OUTSTANDING)), behind, rules.max_lag, rules.groups_per_step):
            return "lag"
        return "memory" if self._bytes() > rules.max_bytes else ""

    def _skip_issued(self) -> None:
        """After a rewind the cursor passes over prompts that were issued before it, whatever has become of them."""
        while self._cursor in self._ahead:
            self._ahead.remove(self._cursor)
            self._cursor += 1

    def _at(self) -> Version:
        if self._now is None:
            raise StoreError("the store does not know this run yet; a learner attaches and reconciles first")
        return self._now

    def _only(self, call: str, version: Version) -> Version:
        """The published version, for the learner of its lineage alone."""
        now = self._at()
        if version.lineage != now.lineage:
            raise StoreError(
                f"{call}: the learner that asks is at version {version}, the store is at {now}: "
                "another learner has taken over"
            )
        return now

    def _lag(self, now: Version, sampled: Version) -> int | None:
        """None for a lineage whose fork was lost together with an earlier store: older than any bound."""
        try:
            return staleness.lag(now, sampled, self._forks)
        except ValueError:
            return None

    def _run_rules(self) -> LedgerRules:
        assert self._rules is not None  # reconcile saw to that
        return self._rules

    def _in(self, *states: str) -> list[int]:
        return sorted(index for index, entry in self._entries.items() if entry.state in states)

    def _bytes(self) -> int:
        return sum(len(entry.payload) for entry in self._entries.values())

    def _drop(self, indices: Iterable[int], reason: str) -> int:
        gone = [self._entries.pop(index) for index in indices]
        if gone:
            self._drops[reason] += len(gone)
            self._open(len(gone))
        return len(gone)

    def _held(self, ticket: Ticket) -> Entry | None:
        """The ticket's entry while its fencing token is the current one."""
        entry = self._entries.get(ticket.index)
        return entry if entry is not None and entry.fence == ticket.fence else None

    def _fenced(self, call: str, ticket: Ticket) -> Fenced:
        return Fenced(f"{call}: the lease of group {ticket.index} (fencing token {ticket.fence}) is no longer current")
