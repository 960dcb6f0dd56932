"""The ledger as its callers see it: `ReplayStore`, what crosses it, and how many groups are in which state.

The workers, the learner and the supervisor are written against this; `services/store` has it on Redis and in memory.
The errors that it raises are in `services/contracts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from penstock.services.staleness import Forks
from penstock.services.versions import Version

Closed = Literal["", "lag", "memory", "data_end", "held", "draining"]
"""Why a reservation came back short: the staleness gate, the store's memory bound, no prompts left, closed by
hand, or the run is ending. Empty when all that was asked for was given."""


@dataclass(frozen=True)
class Ticket:
    """The right to play one group until the lease ends."""

    index: int
    """Which prompt of the stream."""
    fence: int
    """Fencing token, larger with every lease of this index."""
    expires: float
    """Unix seconds by the store's clock."""
    partial: bytes | None = None
    """An encoded PartialGroup to go on from, when another worker handed the group back."""


@dataclass(frozen=True)
class Reservation:
    """The answer to `reserve`."""

    tickets: tuple[Ticket, ...]
    published: Version
    """The newest version the learner has published: swap to it when behind."""
    closed: Closed = ""


class Finished(NamedTuple):
    """One group that is to be stored."""

    ticket: Ticket
    payload: bytes
    """An encoded Group."""
    binding: Version
    """`staleness.binding_version` of the group."""


@dataclass(frozen=True)
class Stored:
    """One group on its way to the learner."""

    index: int
    payload: bytes
    """An encoded Group."""


@dataclass(frozen=True)
class Taken:
    """The answer to `take`: everything held for this step so far, oldest first."""

    groups: tuple[Stored, ...]
    stale: int
    """Groups that this call dropped because they were beyond `max_lag`."""
    exhausted: bool
    """True when nothing is stored, in flight or still to be issued: waiting longer is pointless."""


STATES = ("returned", "reserved", "stored", "taken", "applied", "committed", "dropped")


@dataclass(frozen=True)
class LedgerCounts:
    """How many of the issued prompts are in which state, read in one instant."""

    issued: int
    by_state: Mapping[str, int]
    dropped: Mapping[str, int]
    """By reason; sums to `by_state['dropped']`."""
    payload_bytes: int
    published: Version
    redelivered: int = 0
    """How many times a group was leased again after its first lease ended without a result."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Groups that workers have refused since the store began, by reason: those of the dropped ones that never reached
    the learner. A learner that goes back to a checkpoint does not take them back."""
    causes: Mapping[str, str] = field(default_factory=dict)
    """By the same reasons, why the last one was refused."""
    queue_age: float = field(default=0.0, compare=False)
    """Seconds for which the oldest stored group has been waiting for the learner; 0 when none is."""

    @property
    def balanced(self) -> bool:
        """The invariant: every prompt ever issued is in exactly one state."""
        return self.issued == sum(self.by_state.values()) and self.by_state["dropped"] == sum(self.dropped.values())

    @property
    def outstanding(self) -> int:
        return sum(self.by_state[s] for s in ("returned", "reserved", "stored", "taken"))


@dataclass(frozen=True)
class LedgerRules:
    """What the store's scripts need to know of the run; written once when a learner attaches."""

    max_lag: int
    groups_per_step: int
    prompts: int | None
    """How many prompts may ever be issued; None for a stream without end."""
    max_bytes: int
    """The gate closes while the payloads in the store are larger than this."""


@dataclass(frozen=True)
class LedgerMemo:
    """What a checkpoint remembers of the ledger, so that the checkpoint can win over the store at a resume."""

    issued: int
    """How many prompts had been issued."""
    committed: int
    """Groups that this checkpoint, or one before it on the same path, contains."""
    dropped: Mapping[str, int]
    """By reason."""
    outstanding: tuple[int, ...]
    """Indices that were neither committed nor dropped; bounded by the gate, (max_lag + 1) × groups_per_step."""
    forks: Forks
    """The lineages known by then."""
    ahead: tuple[int, ...] = ()
    """Indices beyond the cursor that had been issued nevertheless: what was alive when a learner went back to a
    checkpoint before. Bounded as `outstanding` is."""

    @property
    def cursor(self) -> int:
        """The prompts before this one had all been issued, and beyond it those that are `ahead`."""
        return self.issued - len(self.ahead)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, for the checkpoint's own file."""
        forks = {str(lineage): str(version) for lineage, version in self.forks.items()}
        return {
            "issued": self.issued,
            "committed": self.committed,
            "dropped": dict(self.dropped),
            "outstanding": list(self.outstanding),
            "forks": forks,
            "ahead": list(self.ahead),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LedgerMemo:
        """Inverse of `as_dict`."""
        forks = {int(lineage): Version.parse(text) for lineage, text in values["forks"].items()}
        return cls(
            issued=values["issued"],
            committed=values["committed"],
            dropped=dict(values["dropped"]),
            outstanding=tuple(values["outstanding"]),
            forks=forks,
            ahead=tuple(values.get("ahead", ())),
        )


class ReplayStore(Protocol):
    """The ledger and its payloads. Every method may be repeated with the same arguments after a lost reply.

    Any method raises StoreError when the store does not answer within its deadline.
    """

    def reserve(
        self, worker: str, version: Version, want: int, lease: float, request: str, waits: bool = False
    ) -> Reservation:
        """Lease up to `want` groups for `lease` seconds: returned ones first, then new prompts as far as
        the gate admits at `version`. The same `request` again gives the same answer. `waits`: whoever gets nothing
        will listen for room (`await_opening`)."""
        ...

    def await_opening(self, worker: str, seconds: float) -> bool:
        """Whether room was made for a worker whose last `reserve` brought nothing and said that it waits: returns as
        soon as it is, and at the latest after `seconds`. Not all who wait are told where there is not room for all."""
        ...

    def renew(self, worker: str, tickets: Sequence[Ticket], lease: float) -> tuple[int, ...]:
        """Extend leases; returns the indices that are no longer this worker's."""
        ...

    def put(self, ticket: Ticket, payload: bytes, binding: Version) -> None:
        """reserved → stored. `binding` is `staleness.binding_version` of the group. Raises Fenced."""
        ...

    def put_all(self, groups: Sequence[Finished]) -> tuple[int, ...]:
        """`put` of every one of them in fewer trips; returns the indices whose lease is no longer current, where `put`
        would raise Fenced. Each group is stored or not by itself."""
        ...

    def release(self, ticket: Ticket, partial: bytes | None) -> None:
        """reserved → returned, with what exists of the group. Raises Fenced."""
        ...

    def refuse(self, ticket: Ticket, reason: str, cause: str = "") -> None:
        """reserved → dropped(reason), for a group that cannot be completed; `cause` says why this one, for people.
        Raises Fenced."""
        ...

    def expire(self) -> int:
        """reserved → returned for every lease that has ended; returns how many."""
        ...

    def lapse(self, worker: str = "") -> int:
        """reserved → returned for every lease of `worker`, whose process is gone, and without a name for all, where no
        worker is left of an earlier start; returns how many. As after a lease that has ended, a holder that lives after
        all may go on until somebody else is given the group."""
        ...

    def take(self, version: Version, want: int) -> Taken:
        """stored → taken for the train step that starts from `version`, until `want` are held.

        Stored groups whose binding version lags more than `max_lag` are dropped(stale) first."""
        ...

    def await_arrival(self, seconds: float) -> None:
        """Return as soon as a group has been put since the last call, and at the latest after `seconds`."""
        ...

    def discard(self, version: Version, indices: Sequence[int], reason: str) -> None:
        """taken → dropped(reason), for groups taken for the step from `version`."""
        ...

    def advance(self, version: Version) -> None:
        """The step that ends in `version` is done and published: its groups, taken → applied; gate opens."""
        ...

    def commit(self, version: Version) -> int:
        """applied → committed for every step up to `version`, now that a checkpoint holds it."""
        ...

    def memo(self, version: Version) -> LedgerMemo:
        """What the checkpoint that holds `version` shall remember; ask for it after `advance(version)`, keep it
        in the checkpoint, then call `commit(version)`. Raises StoreError for a version before the last commit."""
        ...

    def reconcile(self, checkpoint: Version, issued: int, request: str, memo: LedgerMemo | None = None) -> Version:
        """A learner starts from `checkpoint` (FIRST for a new run), which knew of `issued` prompts.

        Opens a new lineage unless the store is new; applied and taken beyond the checkpoint → stored,
        applied up to it → committed. An empty store with `issued` > 0 has lost its disk: those prompts are
        counted as dropped(store_lost), but for what the checkpoint's `memo` knows as committed or dropped.
        With a memo, a checkpoint older than the last commit rewinds the prompt cursor, and one that is newer
        than the store repairs the store. Returns the version at which the learner goes on."""
        ...

    def drain(self, reason: str) -> int:
        """End of the run: no more reservations; everything outstanding → dropped(reason)."""
        ...

    def hold(self, held: bool) -> None:
        """Close the gate for new prompts by hand, or leave it to the lag again. What is outstanding goes on, also what
        another worker has returned; a learner that starts anew begins with an open gate."""
        ...

    def published(self) -> Version: ...

    def forks(self) -> Forks: ...

    def counts(self) -> LedgerCounts: ...

    def gate(self) -> Closed:
        """Why a worker at the published version would get no new prompt now; empty when it would get one.

        A learner that waits while this says `memory` must commit a checkpoint: applied payloads hold the space."""
        ...

    def pin(self, version: Version, reader: str, seconds: float) -> None:
        """Keep the weights of `version` from being deleted for a while."""
        ...

    def unpin(self, version: Version, reader: str) -> None: ...

    def pinned(self) -> frozenset[Version]: ...
