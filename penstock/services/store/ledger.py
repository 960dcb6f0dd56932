"""The ledger on Redis. The transitions are in scripts/*.lua, atomic on the server; this is their client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from penstock.services.contracts import Fenced, StoreError
from penstock.services.replay import (
    STATES,
    Closed,
    Finished,
    LedgerCounts,
    LedgerMemo,
    LedgerRules,
    Reservation,
    Stored,
    Taken,
    Ticket,
)
from penstock.services.staleness import Forks
from penstock.services.store.connection import Connection, ForksChanged, Unattached
from penstock.services.store.lineages import Tree
from penstock.services.versions import FIRST, Version

_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

T = TypeVar("T")

MOST_BYTES = 4 * 1024**2
MOST_GROUPS = 256
"""Of payloads in one `put`: while the server copies them it answers nobody else."""


def check_run_id(run_id: str) -> str:
    """`run_id` if it can be part of a key. Raises ValueError."""
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(f"a run id has 1 to 128 letters, digits, '.', '_' or '-'; found {run_id!r}")
    return run_id


class RedisStore:
    """`replay.ReplayStore` on a Redis server; safe to use from several threads and processes at a time.

    `url` is redis://, rediss:// or unix://, without password. All keys of the run begin with `penstock:{run_id}:`.
    Calls are tried again until `deadline` seconds have passed, then they raise StoreError.
    """

    def __init__(self, url: str, run_id: str, *, deadline: float = 30.0, password: str | None = None) -> None:
        self.run_id = check_run_id(run_id)
        self._connection = Connection(url, f"penstock:{{{run_id}}}:", deadline=deadline, password=password)
        self._tree: Tree | None = None
        self._held: tuple[Version, Mapping[int, bytes]] = (FIRST, {})

    def __repr__(self) -> str:
        return f"RedisStore({self._connection.where}, {self.run_id})"

    # --- the run ------------------------------------------------------------------------------------

    def attach(self, rules: LedgerRules) -> None:
        """Write the rules of a new run; the same rules again change nothing.

        Raises StoreError for a server that is too old, and when the run was attached with other rules.
        """
        self._connection.require()
        self._connection.call("attach", *_rule_values(rules))

    def amend(self, rules: LedgerRules) -> None:
        """Change the rules of a run, at a resume or while it goes on (a guard that lowers `max_lag`)."""
        self._in_tree(lambda tree: self._connection.call("attach", *_rule_values(rules), tree.lineage), new=True)

    def reconcile(self, checkpoint: Version, issued: int, request: str, memo: LedgerMemo | None = None) -> Version:
        """See `replay.ReplayStore.reconcile`. Raises StoreError when the checkpoint's lineage is unknown to the
        store and to the memo."""
        if memo is not None and memo.issued != issued:
            raise ValueError(f"reconcile: the memo knows of {memo.issued} prompts, the call says {issued}")

        def ask(tree: Tree) -> list[Any]:
            forks = {**tree.forks, **(memo.forks if memo else {})}
            common = Tree(tree.lineage, forks).reach(checkpoint)
            opened = max(tree.lineage, checkpoint.lineage, *forks, 0) + 1
            return self._connection.call(
                "reconcile",
                request,
                checkpoint.lineage,
                checkpoint.step,
                tree.lineage,
                issued,
                opened,
                json.dumps(common),
                json.dumps({lineage: str(version) for lineage, version in forks.items()}),
                json.dumps(memo.as_dict()) if memo else "",
            )

        version = _version(*self._in_tree(ask, new=True))
        self._refresh()
        return version

    def drain(self, reason: str) -> int:
        return int(self._in_tree(lambda tree: self._connection.call("drain", reason, tree.lineage))[0])

    def hold(self, held: bool) -> None:
        self._in_tree(lambda tree: self._connection.call("hold", int(held), tree.lineage))

    def erase(self) -> int:
        """Delete everything this run has in the store, for a server that outlives the run. Not to be undone."""
        return self._connection.erase()

    def close(self) -> None:
        """Close this client's connections."""
        self._connection.close()

    # --- workers ------------------------------------------------------------------------------------

    def reserve(
        self, worker: str, version: Version, want: int, lease: float, request: str, waits: bool = False
    ) -> Reservation:
        def ask(tree: Tree) -> list[Any]:
            common = tree.current.get(version.lineage)
            if common is None:
                if tree is not self._refresh():
                    raise ForksChanged
                raise StoreError(
                    f"reserve: {worker} is at version {version}, of a lineage that the store does not know"
                )
            where = (version.lineage, version.step, common, tree.lineage)
            return self._connection.call("reserve", worker, request, want, repr(float(lease)), *where, int(waits))

        lineage, step, closed, expires, *granted = self._in_tree(ask)
        tickets = tuple(
            Ticket(index=int(granted[i]), fence=int(granted[i + 1]), expires=float(expires), partial=granted[i + 2])
            for i in range(0, len(granted), 3)
        )
        return Reservation(tickets, _version(lineage, step), cast(Closed, closed.decode()))

    def await_opening(self, worker: str, seconds: float) -> bool:
        return self._connection.await_something(f"opened:{worker}", seconds)

    def renew(self, worker: str, tickets: Sequence[Ticket], lease: float) -> tuple[int, ...]:  # noqa: ARG002  (the fencing token says whose)
        if not tickets:
            return ()
        pairs = [number for ticket in tickets for number in (ticket.index, ticket.fence)]
        return tuple(int(index) for index in self._connection.call("renew", repr(float(lease)), *pairs))

    def put(self, ticket: Ticket, payload: bytes, binding: Version) -> None:
        if self.put_all([Finished(ticket, payload, binding)]):
            raise Fenced(f"put: the lease of group {ticket.index} (fencing token {ticket.fence}) is no longer current")

    def put_all(self, groups: Sequence[Finished]) -> tuple[int, ...]:
        fenced: list[int] = []
        for several in _in_calls(groups):
            values = [
                value
                for ticket, payload, binding in several
                for value in (ticket.index, ticket.fence, payload, str(binding))
            ]
            fenced += [int(index) for index in self._connection.call("put", *values)]
        return tuple(fenced)

    def release(self, ticket: Ticket, partial: bytes | None) -> None:
        self._connection.call("release", ticket.index, ticket.fence, partial or b"")

    def refuse(self, ticket: Ticket, reason: str, cause: str = "") -> None:
        self._connection.call("refuse", ticket.index, ticket.fence, reason, cause)

    def expire(self) -> int:
        return int(self._connection.call("expire")[0])

    def lapse(self, worker: str = "") -> int:
        return int(self._connection.call("lapse", worker)[0])

    # --- the learner --------------------------------------------------------------------------------

    def take(self, version: Version, want: int) -> Taken:
        """See `replay.ReplayStore.take`. Payloads that an earlier call for the same version brought are kept here
        and not sent again, so that waiting for the last group of a step is cheap."""

        def ask(tree: Tree) -> list[Any]:
            return self._connection.call("take", version.lineage, version.step, want, tree.lineage, tree.current_text)

        held_for, kept = self._held
        known = kept if held_for == version else {}
        stale = 0
        for _ in range(5):
            dropped, exhausted, *flat = self._in_tree(ask)
            stale += int(dropped)
            indices = [int(index) for index in flat]
            missing = [index for index in indices if index not in known]
            found = zip(missing, self._connection.payloads(missing), strict=True)
            have = {**known, **{index: payload for index, payload in found if payload is not None}}
            if have.keys() >= set(indices):
                payloads = {index: have[index] for index in indices}
                self._held = (version, payloads)
                return Taken(tuple(Stored(i, payload) for i, payload in payloads.items()), stale, bool(exhausted))
            # Between the two questions somebody has ended a group that was taken; asked again, the script says who.
        raise StoreError(f"take: groups that are taken for the step from version {version} vanish before they are read")

    def await_arrival(self, seconds: float) -> None:
        self._connection.await_something("arrived", seconds)

    def discard(self, version: Version, indices: Sequence[int], reason: str) -> None:
        if indices:
            self._connection.call("discard", version.lineage, version.step, reason, *indices)

    def advance(self, version: Version) -> None:
        self._connection.call("advance", version.lineage, version.step)

    def memo(self, version: Version) -> LedgerMemo:
        issued, committed, drops, outstanding, forks, ahead = self._connection.call(
            "memo", version.lineage, version.step
        )
        return LedgerMemo(
            issued=int(issued),
            committed=int(committed),
            dropped=_drops(drops),
            outstanding=tuple(sorted(int(index) for index in outstanding)),
            forks=_forks(forks),
            ahead=tuple(sorted(int(index) for index in ahead)),
        )

    def commit(self, version: Version) -> int:
        return int(self._connection.call("commit", version.lineage, version.step)[0])

    # --- looking on ---------------------------------------------------------------------------------

    def published(self) -> Version:
        return Version(*self._connection.published())

    def forks(self) -> Forks:
        return self._refresh().forks

    def gate(self) -> Closed:
        return cast(Closed, self._connection.call("head")[3].decode())

    def counts(self) -> LedgerCounts:
        issued, sizes, committed, drops, size, lineage, step, redelivered, refused, causes, age = self._connection.call(
            "counts"
        )
        dropped = _drops(drops)
        numbers = [*map(int, sizes), int(committed), sum(dropped.values())]
        return LedgerCounts(
            issued=int(issued),
            by_state=dict(zip(STATES, numbers, strict=True)),
            dropped=dropped,
            payload_bytes=int(size),
            published=_version(lineage, step),
            redelivered=int(redelivered),
            refused=_drops(refused),
            causes={reason.decode(): cause.decode() for reason, cause in _pairs(causes)},
            queue_age=float(age),
        )

    def announce(self, worker: str, facts: Mapping[str, str | float], ttl: float) -> None:
        """Say that `worker` is alive, with what others may want to know of it; forgotten after `ttl` seconds."""
        self._connection.call("presence", worker, json.dumps(dict(facts)), repr(float(ttl)))

    def workers(self) -> dict[str, dict[str, str | float]]:
        """The facts of every worker that announced itself and has not fallen silent."""
        (flat,) = self._connection.call("presence")
        return {name.decode(): json.loads(facts) for name, facts in _pairs(flat)}

    def pin(self, version: Version, reader: str, seconds: float) -> None:
        self._connection.call("pins", f"{version} {reader}", repr(float(seconds)))

    def unpin(self, version: Version, reader: str) -> None:
        self._connection.call("pins", f"{version} {reader}")

    def pinned(self) -> frozenset[Version]:
        (pins,) = self._connection.call("pins")
        return frozenset(Version.parse(pin.decode().split(" ", 1)[0]) for pin in pins)

    # --- lineages -----------------------------------------------------------------------------------

    def _refresh(self) -> Tree:
        """Read the lineages again; the same object as before when nothing has changed."""
        lineage, _, forks, _ = self._connection.call("head")
        tree = Tree(int(lineage), _forks(forks))
        if tree != self._tree:
            self._tree = tree
        assert self._tree is not None
        return self._tree

    def _in_tree(self, ask: Callable[[Tree], list[Any]], new: bool = False) -> list[Any]:
        """Ask with the lineages as known here; the script says when they have changed meanwhile."""
        tree = self._tree
        for _ in range(5):
            try:
                return ask(tree or self._refresh_or_new(new))
            except ForksChanged:
                tree = self._refresh_or_new(new)
        raise StoreError(f"the lineages of run {self.run_id} change faster than they can be read")

    def _refresh_or_new(self, new: bool) -> Tree:
        try:
            return self._refresh()
        except Unattached:
            if not new:
                raise
            return Tree(-1)


def _in_calls(groups: Sequence[Finished]) -> Iterator[list[Finished]]:
    """The groups in calls that hold the server up for some milliseconds at most. Raises ValueError for one without a
    payload."""
    several: list[Finished] = []
    size = 0
    for group in groups:
        if not group.payload:
            raise ValueError(f"put: group {group.ticket.index} has an empty payload")
        if several and (size + len(group.payload) > MOST_BYTES or len(several) >= MOST_GROUPS):
            yield several
            several, size = [], 0
        several.append(group)
        size += len(group.payload)
    if several:
        yield several


def _rule_values(rules: LedgerRules) -> tuple[int, int, int, int]:
    prompts = -1 if rules.prompts is None else rules.prompts
    return rules.max_lag, rules.groups_per_step, prompts, rules.max_bytes


def _version(lineage: Any, step: Any) -> Version:
    return Version(int(lineage), int(step))


def _pairs(flat: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _drops(flat: Sequence[bytes]) -> dict[str, int]:
    return {reason.decode(): int(count) for reason, count in _pairs(flat)}


def _forks(flat: Sequence[bytes]) -> dict[int, Version]:
    return {int(lineage): Version.parse(version.decode()) for lineage, version in _pairs(flat)}
