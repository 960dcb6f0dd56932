"""The ledger in plain Python: one process, nothing durable.

It says in the simplest words what the scripts on Redis must do, and the tests compare the two. Also good for
trying a learner or a worker without a server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from penstock.services.contracts import Fenced, StoreError
from penstock.services.replay import Closed, Finished, LedgerMemo, LedgerRules, Reservation, Stored, Taken, Ticket
from penstock.services.staleness import Forks
from penstock.services.store.book import OUTSTANDING, REPLY_KEPT, Book, Entry, atomic
from penstock.services.store.lineages import Tree
from penstock.services.versions import FIRST, Version


class MemoryStore(Book):
    """`replay.ReplayStore` in memory; safe to use from several threads. `clock` gives unix seconds."""

    # --- the run ------------------------------------------------------------------------------------

    @atomic
    def attach(self, rules: LedgerRules) -> None:
        if self._rules is not None and self._rules != rules:
            raise StoreError(f"attach: this run was attached with {self._rules}, now it is {rules}; see amend(rules)")
        self._rules = rules

    @atomic
    def amend(self, rules: LedgerRules) -> None:
        self._rules = rules
        self._open_to_all()

    @atomic
    def reconcile(self, checkpoint: Version, issued: int, request: str, memo: LedgerMemo | None = None) -> Version:
        if self._reconciled is not None and self._reconciled[0] == request:
            return self._reconciled[1]
        if self._rules is None:
            raise StoreError("reconcile: attach(rules) must come before reconcile")
        if memo is not None and memo.issued != issued:
            raise ValueError(f"reconcile: the memo knows of {memo.issued} prompts, the call says {issued}")
        forks = self._forks | dict(memo.forks if memo else {})
        if self._now is None:
            self._issued = self._cursor = issued
            if checkpoint == FIRST and issued == 0:
                return self._settle(request, FIRST)
            if memo:
                self._committed, self._drops = memo.committed, Counter(memo.dropped)
                self._ahead, self._cursor = set(memo.ahead), memo.cursor
            self._drops += Counter(store_lost=issued - self._committed - self._drops.total())
        else:
            self._back_to(checkpoint, forks, memo)
        newest = max(self._now.lineage if self._now else 0, checkpoint.lineage, *forks, 0)
        self._forks = {**forks, newest + 1: checkpoint}
        self._last_commit = checkpoint
        return self._settle(request, Version(newest + 1, checkpoint.step))

    def _settle(self, request: str, version: Version) -> Version:
        self._now, self._reconciled = version, (request, version)
        self._draining = self._by_hand = False
        self._open_to_all()
        return version

    def _back_to(self, checkpoint: Version, forks: Forks, memo: LedgerMemo | None) -> None:
        """Put every group where the checkpoint leaves it."""
        now = self._at()

        common = Tree(now.lineage, forks).reach(checkpoint)

        def contains(version: Version) -> bool:
            return version.step <= common.get(version.lineage, -1)

        for index in self._in("applied"):
            if contains(Version(now.lineage, self._entries[index].step)):
                del self._entries[index]
                self._committed += 1
        self._store_again()
        rolled_back = self._last_commit is not None and not contains(self._last_commit)
        not_ours = min(now.step, common[now.lineage]) < checkpoint.step
        if memo is not None and (rolled_back or not_ours):
            self._rebase(memo)

    def _store_again(self) -> None:
        """What a lost learner had used goes to the next one before anything else and in the same portions, so that its
        steps can be repeated to the bit."""
        used = {i: self._entries[i].step + (self._entries[i].state == "taken") for i in self._in("taken", "applied")}
        first = min([self._entries[i].turn for i in self._in("stored")], default=0)
        for turn, index in enumerate(sorted(used, key=lambda i: (used[i], i)), first - len(used)):
            self._entries[index].store(self._clock(), turn)

    def _rebase(self, memo: LedgerMemo) -> None:
        """The checkpoint is older than the last commit, or the store has not gone that way: the checkpoint's view."""
        later = {i for i in self._entries if i >= memo.cursor and i not in memo.ahead}
        kept = {i: e for i, e in self._entries.items() if i in later or i in memo.outstanding}
        again = {i: Entry("returned") for i in memo.outstanding if i not in kept}
        self._entries = kept | again
        self._issued = memo.issued + len(later)
        self._cursor, self._ahead = memo.cursor, later | set(memo.ahead)
        self._committed, self._drops = memo.committed, Counter(memo.dropped)

    @atomic
    def drain(self, reason: str) -> int:
        self._at()
        self._draining = True
        return self._drop(self._in(*OUTSTANDING), reason)

    @atomic
    def hold(self, held: bool) -> None:
        self._at()
        self._by_hand = held
        if not held:
            self._open_to_all()

    # --- workers ------------------------------------------------------------------------------------

    @atomic
    def reserve(
        self, worker: str, version: Version, want: int, lease: float, request: str, waits: bool = False
    ) -> Reservation:
        last, since, answer = self._replies.get(worker, ("", 0.0, None))
        if answer is not None and last == request and self._clock() - since < REPLY_KEPT:
            return replace(answer, tickets=tuple(map(self._again, answer.tickets)))
        now, rules = self._at(), self._run_rules()
        behind = self._lag(now, version)
        if behind is None:
            raise StoreError(f"reserve: {worker} is at version {version}, of a lineage that the store does not know")
        self.expire()
        closed: Closed = "draining" if self._draining else "lag" if behind > rules.max_lag else ""
        tickets: list[Ticket] = []
        if not closed:
            ends = self._clock() + lease
            for index in self._in("returned")[:want]:
                tickets.append(self._grant(index, worker, ends))
                self._redelivered += 1
            while len(tickets) < want:
                closed = self._closed(behind)
                if closed:
                    break
                self._entries[self._cursor] = Entry("reserved")
                tickets.append(self._grant(self._cursor, worker, ends))
                self._issued += 1
                self._cursor += 1
        self._told.discard(worker)
        (self._waiting.add if waits and not tickets else self._waiting.discard)(worker)
        answer = Reservation(tuple(tickets), now, closed)
        self._replies[worker] = (request, self._clock(), answer)
        return answer

    def _again(self, ticket: Ticket) -> Ticket:
        """A ticket of an answer that is given a second time: with the partial while it is good for anything."""
        entry = self._held(ticket)
        return replace(ticket, partial=entry.payload or None if entry is not None and entry.leased else None)

    def _grant(self, index: int, worker: str, ends: float) -> Ticket:
        self._fence += 1
        entry = self._entries[index]
        entry.holder = worker
        entry.state, entry.fence, entry.expires, entry.lapsed = "reserved", self._fence, ends, False
        return Ticket(index, self._fence, ends, entry.payload or None)

    @atomic
    def renew(self, worker: str, tickets: Sequence[Ticket], lease: float) -> tuple[int, ...]:  # noqa: ARG002
        lost = []
        for ticket in tickets:
            entry = self._held(ticket)
            if entry is not None and entry.leased:
                entry.state, entry.lapsed, entry.expires = "reserved", False, self._clock() + lease
            else:
                lost.append(ticket.index)
        return tuple(lost)

    @atomic
    def put(self, ticket: Ticket, payload: bytes, binding: Version) -> None:
        if not payload:
            raise ValueError(f"put: group {ticket.index} has an empty payload")
        entry = self._held(ticket)
        if entry is None or (entry.state == "returned" and not entry.lapsed):
            raise self._fenced("put", ticket)
        if entry.leased:
            entry.lapsed, entry.payload, entry.binding = False, payload, binding
            entry.store(self._clock())
            self._arrived.set()

    @atomic
    def put_all(self, groups: Sequence[Finished]) -> tuple[int, ...]:
        fenced = []
        for ticket, payload, binding in groups:
            try:
                self.put(ticket, payload, binding)
            except Fenced:
                fenced.append(ticket.index)
        return tuple(fenced)

    @atomic
    def release(self, ticket: Ticket, partial: bytes | None) -> None:
        entry = self._held(ticket)
        if entry is None or entry.state not in ("reserved", "returned"):
            raise self._fenced("release", ticket)
        if entry.leased:
            entry.state, entry.lapsed, entry.payload = "returned", False, partial or b""
            self._open(1)

    @atomic
    def refuse(self, ticket: Ticket, reason: str, cause: str = "") -> None:
        entry = self._held(ticket)
        if entry is not None and entry.leased:
            self._drop([ticket.index], reason)
            self._refused[reason] += 1
            self._causes[reason] = cause
        elif ticket.index in self._entries:
            raise self._fenced("refuse", ticket)

    @atomic
    def expire(self) -> int:
        now = self._clock()
        return self._lapse([i for i in self._in("reserved") if self._entries[i].expires <= now])

    @atomic
    def lapse(self, worker: str = "") -> int:
        self._waiting.discard(worker)
        return self._lapse([i for i in self._in("reserved") if worker in ("", self._entries[i].holder)])

    def _lapse(self, indices: Sequence[int]) -> int:
        for index in indices:
            self._entries[index].state, self._entries[index].lapsed = "returned", True
        self._open(len(indices))
        return len(indices)

    # --- the learner --------------------------------------------------------------------------------

    @atomic
    def take(self, version: Version, want: int) -> Taken:
        now, rules = self._only("take", version), self._run_rules()
        if not now.step <= version.step <= now.step + 1:
            raise StoreError(f"take: a step from version {version} cannot take while {now} is published")

        def stale(index: int) -> bool:
            behind = self._lag(version, self._entries[index].binding)
            return behind is None or behind > rules.max_lag

        dropped = self._drop([i for i in self._in("stored") if stale(i)], "stale")
        held = [i for i in self._in("taken") if self._entries[i].step == version.step]
        waiting = sorted(self._in("stored"), key=lambda i: (self._entries[i].turn, i))
        for index in waiting[: max(0, want - len(held))]:
            self._entries[index].state, self._entries[index].step = "taken", version.step
            held.append(index)
        ended = self._closed(0) in ("draining", "data_end") and not self._in("returned", "reserved", "stored")
        return Taken(tuple(Stored(i, self._entries[i].payload) for i in sorted(held)), dropped, ended)

    @atomic
    def discard(self, version: Version, indices: Sequence[int], reason: str) -> None:
        self._only("discard", version)
        present = [i for i in dict.fromkeys(indices) if i in self._entries]
        for index in present:
            entry = self._entries[index]
            if entry.state != "taken" or entry.step != version.step:
                raise StoreError(f"discard: group {index} is {entry.state}, not taken for the step from {version}")
        self._drop(present, reason)

    @atomic
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
        self._open(self._run_rules().groups_per_step)

    @atomic
    def memo(self, version: Version) -> LedgerMemo:
        used, last = self._used("memo", version), self._last_commit
        if last is not None and last.lineage == version.lineage and version < last:
            raise StoreError(
                f"memo: version {version} is older than the last commit, {last}: what was committed since is no longer "
                "told apart"
            )
        self._skip_issued()
        return LedgerMemo(
            issued=self._issued,
            committed=self._committed + len(used),
            dropped=dict(self._drops),
            outstanding=tuple(sorted(self._entries.keys() - used)),
            forks=dict(self._forks),
            ahead=tuple(sorted(self._ahead)),
        )

    @atomic
    def commit(self, version: Version) -> int:
        used = self._used("commit", version)
        for index in used:
            del self._entries[index]
        self._committed += len(used)
        self._open(len(used))
        if self._last_commit is None or self._last_commit.lineage != version.lineage or self._last_commit < version:
            self._last_commit = version
        return len(used)

    def _used(self, call: str, version: Version) -> list[int]:
        """The applied groups that a checkpoint of `version` contains."""
        now = self._only(call, version)
        if version.step > now.step:
            raise StoreError(f"{call}: version {version} is not published yet ({now} is): advance first")
        return [i for i in self._in("applied") if self._entries[i].step <= version.step]
