"""The ledger in plain Python: one process, nothing durable.

It says in the simplest words what the scripts on Redis must do, and the tests compare the two. Also good for
trying a learner or a worker without a server.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from penstock.services import staleness
from penstock.services.contracts import (
    STATES,
    Closed,
    Fenced,
    LedgerCounts,
    LedgerMemo,
    LedgerRules,
    Reservation,
    Stored,
    StoreError,
    Taken,
    Ticket,
)
from penstock.services.staleness import Forks
from penstock.services.store.registry import Registry
from penstock.services.versions import FIRST, Version

_OUTSTANDING = ("returned", "reserved", "stored", "taken")
F = TypeVar("F", bound=Callable[..., Any])


def _atomic(method: F) -> F:
    """Hold the store's lock for the whole call, as a script on the server does."""

    @wraps(method)
    def locked(self: MemoryStore, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return cast(F, locked)


@dataclass
class _Entry:
    state: str
    fence: int = 0
    expires: float = 0.0
    lapsed: bool = False
    """The lease has ended, nobody else has been given the group: its last holder may still go on."""
    payload: bytes = b""
    binding: Version = FIRST
    step: int = 0
    """The step it was taken for (state taken) or that used it (state applied)."""


class MemoryStore(Registry):
    """`contracts.ReplayStore` in memory; safe to use from several threads. `clock` gives unix seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self._lock = threading.RLock()
        self._clock = clock
        self._rules: LedgerRules | None = None
        self._now: Version | None = None
        self._forks: dict[int, Version] = {}
        self._entries: dict[int, _Entry] = {}
        self._issued = self._cursor = self._high = self._fence = self._committed = self._redelivered = 0
        self._drops: Counter[str] = Counter()
        self._draining = False
        self._last_commit: Version | None = None
        self._reconciled: tuple[str, Version] | None = None
        self._replies: dict[str, tuple[str, Reservation]] = {}

    # --- the run ------------------------------------------------------------------------------------

    @_atomic
    def attach(self, rules: LedgerRules) -> None:
        if self._rules is not None and self._rules != rules:
            raise StoreError(f"attach: this run was attached with {self._rules}, now it is {rules}; see amend(rules)")
        self._rules = rules

    @_atomic
    def amend(self, rules: LedgerRules) -> None:
        self._rules = rules

    @_atomic
    def reconcile(self, checkpoint: Version, issued: int, request: str, memo: LedgerMemo | None = None) -> Version:
        if self._reconciled is not None and self._reconciled[0] == request:
            return self._reconciled[1]
        if self._rules is None:
            raise StoreError("reconcile: attach(rules) must come before reconcile")
        if memo is not None and memo.issued != issued:
            raise ValueError(f"reconcile: the memo knows of {memo.issued} prompts, the call says {issued}")
        forks = self._forks | dict(memo.forks if memo else {})
        if self._now is None:
            self._issued = self._cursor = self._high = issued
            if checkpoint == FIRST and issued == 0:
                return self._settle(request, FIRST)
            if memo:
                self._committed, self._drops = memo.committed, Counter(memo.dropped)
            self._drops["store_lost"] += issued - self._committed - self._drops.total()
        else:
            if checkpoint.lineage not in {0, *forks}:
                raise StoreError(
                    f"reconcile: lineage of checkpoint {checkpoint} unknown: does it belong to another run?"
                )
            self._back_to(checkpoint, forks, memo)
        newest = max(self._now.lineage if self._now else 0, checkpoint.lineage, *forks, 0)
        self._forks = {**forks, newest + 1: checkpoint}
        self._last_commit = checkpoint
        return self._settle(request, Version(newest + 1, checkpoint.step))

    def _settle(self, request: str, version: Version) -> Version:
        self._now, self._draining, self._reconciled = version, False, (request, version)
        return version

    def _back_to(self, checkpoint: Version, forks: Forks, memo: LedgerMemo | None) -> None:
        """Put every group where the checkpoint leaves it."""
        now = self._at()

        def contains(version: Version) -> bool:
            return version.step <= staleness.common_step(checkpoint, version.lineage, forks)

        for index in self._in("taken", "applied"):
            held = self._entries[index]
            if held.state == "applied" and contains(Version(now.lineage, held.step)):
                del self._entries[index]
                self._committed += 1
            else:
                held.state = "stored"
        rolled_back = self._last_commit is not None and not contains(self._last_commit)
        behind = checkpoint.lineage > now.lineage or (checkpoint.lineage == now.lineage and checkpoint.step > now.step)
        if memo is not None and (rolled_back or behind):
            self._rebase(memo)

    def _rebase(self, memo: LedgerMemo) -> None:
        """The checkpoint is older than the last commit, or the store lost its last writes: the checkpoint's view."""
        kept = {i: e for i, e in self._entries.items() if i >= memo.issued or i in memo.outstanding}
        again = {i: _Entry("returned") for i in memo.outstanding if i not in kept}
        self._entries = kept | again
        self._issued = memo.issued + sum(i >= memo.issued for i in kept)
        self._cursor, self._high = memo.issued, max(self._high, memo.issued)
        self._committed, self._drops = memo.committed, Counter(memo.dropped)

    @_atomic
    def drain(self, reason: str) -> int:
        self._at()
        self._draining = True
        return self._drop(self._in(*_OUTSTANDING), reason)

    # --- workers ------------------------------------------------------------------------------------

    @_atomic
    def reserve(self, worker: str, version: Version, want: int, lease: float, request: str) -> Reservation:
        last, answer = self._replies.get(worker, ("", None))
        if answer is not None and last == request:
            return answer
        now, rules = self._at(), self._run_rules()
        behind = self._lag(now, version)
        if behind is None:
            raise StoreError(f"reserve: {worker} is at version {version}, a lineage that the store does not know")
        self.expire()
        closed: Closed = "draining" if self._draining else "lag" if behind > rules.max_lag else ""
        tickets: list[Ticket] = []
        if not closed:
            ends = self._clock() + lease
            for index in self._in("returned")[:want]:
                tickets.append(self._grant(index, self._entries[index], ends))
                self._redelivered += 1
            while len(tickets) < want:
                closed = self._closed(behind)
                if closed:
                    break
                self._entries[self._cursor] = _Entry("reserved")
                tickets.append(self._grant(self._cursor, self._entries[self._cursor], ends))
                self._issued += 1
                self._cursor += 1
                self._high = max(self._high, self._cursor)
        answer = Reservation(tuple(tickets), now, closed)
        self._replies[worker] = (request, answer)
        return answer

    def _grant(self, index: int, entry: _Entry, ends: float) -> Ticket:
        self._fence += 1
        entry.state, entry.fence, entry.expires, entry.lapsed = "reserved", self._fence, ends, False
        return Ticket(index, self._fence, ends, entry.payload or None)

    def _closed(self, behind: int) -> Closed:
        """Why no new prompt may start at a worker that lags by `behind`."""
        rules = self._run_rules()
        while self._cursor < self._high and self._cursor in self._entries:  # still here after a rewind
            self._cursor += 1
        if self._draining:
            return "draining"
        if rules.prompts is not None and self._cursor >= rules.prompts:
            return "data_end"
        if len(self._in(*_OUTSTANDING)) >= max(0, rules.max_lag + 1 - behind) * rules.groups_per_step:
            return "lag"
        return "memory" if self._bytes() > rules.max_bytes else ""

    @_atomic
    def renew(self, worker: str, tickets: Sequence[Ticket], lease: float) -> tuple[int, ...]:  # noqa: ARG002
        lost = []
        for ticket in tickets:
            entry = self._held(ticket)
            if entry is not None and _leased(entry):
                entry.state, entry.lapsed, entry.expires = "reserved", False, self._clock() + lease
            else:
                lost.append(ticket.index)
        return tuple(lost)

    @_atomic
    def put(self, ticket: Ticket, payload: bytes, binding: Version) -> None:
        if not payload:
            raise ValueError(f"put: group {ticket.index} has an empty payload")
        entry = self._held(ticket)
        if entry is None or (entry.state == "returned" and not entry.lapsed):
            raise self._fenced("put", ticket)
        if _leased(entry):
            entry.state, entry.lapsed, entry.payload, entry.binding = "stored", False, payload, binding

    @_atomic
    def release(self, ticket: Ticket, partial: bytes | None) -> None:
        entry = self._held(ticket)
        if entry is None or entry.state not in ("reserved", "returned"):
            raise self._fenced("release", ticket)
        if _leased(entry):
            entry.state, entry.lapsed, entry.payload = "returned", False, partial or b""

    @_atomic
    def refuse(self, ticket: Ticket, reason: str) -> None:
        entry = self._held(ticket)
        if entry is not None and _leased(entry):
            self._drop([ticket.index], reason)
        elif ticket.index in self._entries:
            raise self._fenced("refuse", ticket)

    @_atomic
    def expire(self) -> int:
        now = self._clock()
        ended = [i for i in self._in("reserved") if self._entries[i].expires <= now]
        for index in ended:
            self._entries[index].state, self._entries[index].lapsed = "returned", True
        return len(ended)

    # --- the learner --------------------------------------------------------------------------------

    @_atomic
    def take(self, version: Version, want: int) -> Taken:
        now, rules = self._only("take", version), self._run_rules()
        if not now.step <= version.step <= now.step + 1:
            raise StoreError(f"take: a step from version {version} cannot take while {now} is published")

        def stale(index: int) -> bool:
            behind = self._lag(version, self._entries[index].binding)
            return behind is None or behind > rules.max_lag

        dropped = self._drop([i for i in self._in("stored") if stale(i)], "stale")
        held = [i for i in self._in("taken") if self._entries[i].step == version.step]
        for index in self._in("stored")[: max(0, want - len(held))]:
            self._entries[index].state, self._entries[index].step = "taken", version.step
            held.append(index)
        ended = self._closed(0) in ("draining", "data_end") and not self._in("returned", "reserved", "stored")
        return Taken(tuple(Stored(i, self._entries[i].payload) for i in sorted(held)), dropped, ended)

    @_atomic
    def discard(self, version: Version, indices: Sequence[int], reason: str) -> None:
        self._only("discard", version)
        present = [i for i in dict.fromkeys(indices) if i in self._entries]
        for index in present:
            entry = self._entries[index]
            if entry.state != "taken" or entry.step != version.step:
                raise StoreError(f"discard: group {index} is {entry.state}, not taken for the step from {version}")
        self._drop(present, reason)

    @_atomic
    def advance(self, version: Version) -> None:
        now = self._only("advance", version)
        if version.step <= now.step:
            return
        if version != now.next():
            raise StoreError(f"advance: version {version} does not follow the published {now}")
        for index in self._in("taken"):
            entry = self._entries[index]
            if entry.step < version.step:
                entry.state, entry.step = "applied", version.step
        self._now = version

    @_atomic
    def memo(self, version: Version) -> LedgerMemo:
        used = self._used("memo", version)
        outstanding = tuple(sorted(self._entries.keys() - used))
        return LedgerMemo(self._issued, self._committed + len(used), dict(self._drops), outstanding, dict(self._forks))

    @_atomic
    def commit(self, version: Version) -> int:
        used = self._used("commit", version)
        for index in used:
            del self._entries[index]
        self._committed += len(used)
        if self._last_commit is None or self._last_commit.lineage != version.lineage or self._last_commit < version:
            self._last_commit = version
        return len(used)

    def _used(self, call: str, version: Version) -> list[int]:
        """The applied groups that a checkpoint of `version` contains."""
        now = self._only(call, version)
        if version.step > now.step:
            raise StoreError(f"{call}: version {version} is not published yet ({now} is): advance first")
        return [i for i in self._in("applied") if self._entries[i].step <= version.step]

    # --- looking on ---------------------------------------------------------------------------------

    @_atomic
    def published(self) -> Version:
        return self._at()

    @_atomic
    def forks(self) -> Forks:
        return dict(self._forks)

    @_atomic
    def gate(self) -> Closed:
        self._at()
        return self._closed(0)

    @_atomic
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
        )

    # --- small parts --------------------------------------------------------------------------------

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
        return len(gone)

    def _held(self, ticket: Ticket) -> _Entry | None:
        """The ticket's entry while its fencing token is the current one."""
        entry = self._entries.get(ticket.index)
        return entry if entry is not None and entry.fence == ticket.fence else None

    def _fenced(self, call: str, ticket: Ticket) -> Fenced:
        return Fenced(f"{call}: the lease of group {ticket.index} (fencing token {ticket.fence}) is no longer current")


def _leased(entry: _Entry) -> bool:
    return entry.state == "reserved" or (entry.state == "returned" and entry.lapsed)
