"""The ledger in plain Python: what the stores must do, in the simplest words. The tests hold Redis and memory to it.

One dictionary has every prompt that was ever issued on the surviving lineage, also those that have ended, so that no
prompt can be in two states or in none. The clock is a number that the test moves. Nothing here is shared with the
stores but the records that cross their calls and the names of versions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from penstock.services.replay import (
    STATES,
    Finished,
    LedgerCounts,
    LedgerMemo,
    LedgerRules,
    Reservation,
    Stored,
    Taken,
    Ticket,
)
from penstock.services.versions import FIRST, Version

OUTSTANDING = ("returned", "reserved", "stored", "taken")
ENDED = ("committed", "dropped")
REPLY_KEPT = 300.0
"""Seconds for which the answer to a `reserve` is kept for a repetition."""


class RefusedCall(Exception):
    """The store must answer with a StoreError, and change nothing."""


class FencedCall(Exception):
    """The store must answer with Fenced, and change nothing."""


@dataclass
class Prompt:
    """One prompt that was issued."""

    state: str
    reason: str = ""
    """Why it was dropped (state dropped)."""
    fence: int = 0
    ends: float = 0.0
    """When its lease ends (state reserved)."""
    holder: str = ""
    """Who was given it last."""
    lapsed: bool = False
    """Its lease has ended and nobody else has it: the last holder may go on (state returned)."""
    payload: bytes = b""
    binding: Version = FIRST
    step: int = 0
    """Taken for the step from here, or applied by the step that ended here."""
    since: float = 0.0
    """When it was stored."""
    again: tuple[int, int] = (0, 0)
    """Of what is delivered again: after which resume, the latest counting lowest, and for which step (state stored)."""

    @property
    def leased(self) -> bool:
        return self.state == "reserved" or (self.state == "returned" and self.lapsed)


States = Mapping[int, tuple[str, str]]
"""What a checkpoint knows of every prompt: `committed`, `dropped` with its reason, or `open`."""


@dataclass
class Model:
    """The ledger of one run. Every call of `ReplayStore` has a method of its name."""

    clock: float = 0.0
    rules: LedgerRules | None = None
    now: Version | None = None
    forks: dict[int, Version] = field(default_factory=dict)
    prompts: dict[int, Prompt] = field(default_factory=dict)
    fences: int = 0
    redelivered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    causes: dict[str, str] = field(default_factory=dict)
    draining: bool = False
    held: bool = False
    last_commit: Version | None = None
    last_reconcile: tuple[str, Version] | None = None
    replies: dict[str, tuple[str, float, Reservation]] = field(default_factory=dict)
    pins: dict[tuple[Version, str], float] = field(default_factory=dict)
    present: dict[str, tuple[float, Mapping[str, str | float]]] = field(default_factory=dict)

    # --- versions -----------------------------------------------------------------------------------

    def way(self, version: Version) -> Iterator[Version]:
        """`version` and all that came before it, each under the name of the lineage that made it."""
        lineage, step = version
        while step >= 0:
            while lineage in self.forks and step <= self.forks[lineage].step:
                lineage = self.forks[lineage].lineage
            yield Version(lineage, step)
            step -= 1

    def lag(self, now: Version, sampled: Version) -> int | None:
        """Steps from one version to the other over the last that both come from; None when there is none."""
        mine = list(self.way(now))
        for down, version in enumerate(self.way(sampled)):
            if version in mine:
                return down + mine.index(version)
        return None

    def contains(self, checkpoint: Version, version: Version) -> bool:
        """Whether the weights of `checkpoint` have gone through `version`."""
        return next(self.way(version)) in self.way(checkpoint)

    def knows(self, lineage: int) -> bool:
        """Whether `lineage` has anything to do with the one that is being worked on."""
        assert self.now is not None
        roots = {list(self.way(Version(at, 0)))[-1].lineage for at in (lineage, self.now.lineage)}
        return len(roots) == 1

    # --- small questions ----------------------------------------------------------------------------

    def indices(self, *states: str) -> list[int]:
        return sorted(index for index, prompt in self.prompts.items() if prompt.state in states)

    def next_prompt(self) -> int:
        """The first of the stream that has not been issued."""
        return next(index for index in range(len(self.prompts) + 1) if index not in self.prompts)

    def payload_bytes(self) -> int:
        return sum(len(prompt.payload) for prompt in self.prompts.values() if prompt.state not in ENDED)

    def dropped(self) -> Counter[str]:
        return Counter(prompt.reason for prompt in self.prompts.values() if prompt.state == "dropped")

    def attached(self) -> tuple[Version, LedgerRules]:
        if self.now is None or self.rules is None:
            raise RefusedCall
        return self.now, self.rules

    def newest_learner(self, version: Version) -> Version:
        now, _ = self.attached()
        if version.lineage != now.lineage:
            raise RefusedCall
        return now

    def drop(self, indices: Sequence[int], reason: str) -> int:
        for index in indices:
            self.prompts[index] = Prompt("dropped", reason)
        return len(indices)

    def mine(self, ticket: Ticket) -> Prompt | None:
        """The ticket's prompt while it is alive and nobody has got a newer ticket."""
        prompt = self.prompts.get(ticket.index)
        return prompt if prompt and prompt.state not in ENDED and prompt.fence == ticket.fence else None

    def closed(self, behind: int) -> str:
        """Why a worker that lags by `behind` gets no new prompt."""
        _, rules = self.attached()
        if self.draining:
            return "draining"
        if rules.prompts is not None and self.next_prompt() >= rules.prompts:
            return "data_end"
        if self.held:
            return "held"
        if len(self.indices(*OUTSTANDING)) >= (rules.max_lag + 1 - behind) * rules.groups_per_step:
            return "lag"
        return "memory" if self.payload_bytes() > rules.max_bytes else ""

    # --- the run ------------------------------------------------------------------------------------

    def attach(self, rules: LedgerRules) -> None:
        if self.rules not in (None, rules):
            raise RefusedCall
        self.rules = rules

    def amend(self, rules: LedgerRules) -> None:
        self.rules = rules

    def drain(self, reason: str) -> int:
        self.attached()
        self.draining = True
        return self.drop(self.indices(*OUTSTANDING), reason)

    def hold(self, held: bool) -> None:
        self.attached()
        self.held = held

    def reconcile(
        self, checkpoint: Version, issued: int, request: str, memo: LedgerMemo | None, states: States
    ) -> Version:
        """`states` is what the checkpoint knows of every prompt, where the stores are told numbers only."""
        if self.last_reconcile and self.last_reconcile[0] == request:
            return self.last_reconcile[1]
        if self.rules is None:
            raise RefusedCall
        if self.now is None and issued == 0 and checkpoint == FIRST:
            return self.settle(request, FIRST)
        before = dict(self.forks)
        self.forks |= memo.forks if memo else {}
        if self.now is None:
            for index, (state, reason) in states.items():
                self.prompts[index] = Prompt("dropped", "store_lost") if state == "open" else Prompt(state, reason)
        elif self.knows(checkpoint.lineage):
            self.back_to(checkpoint, self.now, None if memo is None else states)
        else:
            self.forks = before
            raise RefusedCall
        opened = 1 + max(checkpoint.lineage, *self.forks, self.now.lineage if self.now else 0, 0)
        self.forks[opened] = self.last_commit = checkpoint
        return self.settle(request, Version(opened, checkpoint.step))

    def settle(self, request: str, version: Version) -> Version:
        self.now, self.last_reconcile = version, (request, version)
        self.draining = self.held = False
        return version

    def back_to(self, checkpoint: Version, now: Version, states: States | None) -> None:
        latest = min((prompt.again for prompt in self.prompts.values()), default=(0, 0))[0] - 1
        for index in self.indices("taken", "applied"):
            prompt = self.prompts[index]
            used_by = prompt.step if prompt.state == "applied" else prompt.step + 1
            if prompt.state == "applied" and self.contains(checkpoint, Version(now.lineage, used_by)):
                self.prompts[index] = Prompt("committed")
            else:
                prompt.state, prompt.since, prompt.again = "stored", self.clock, (latest, used_by)
        rolled_back = self.last_commit is not None and not self.contains(checkpoint, self.last_commit)
        if states is not None and (rolled_back or not self.contains(now, checkpoint)):
            self.see_as(states)

    def see_as(self, states: States) -> None:
        """The checkpoint's view of what it knows; of the rest, what is still alive was issued, and nothing else."""
        alive = {index: prompt for index, prompt in self.prompts.items() if prompt.state not in ENDED}
        for index, (state, reason) in states.items():
            self.prompts[index] = alive.get(index, Prompt("returned")) if state == "open" else Prompt(state, reason)
        for index in set(self.prompts) - set(states) - set(alive):
            del self.prompts[index]

    # --- workers ------------------------------------------------------------------------------------

    def reserve(self, worker: str, version: Version, want: int, lease: float, request: str) -> Reservation:
        said, at, answer = self.replies.get(worker, ("", 0.0, None))
        if answer and said == request and self.clock - at < REPLY_KEPT:
            return replace(answer, tickets=tuple(map(self.again, answer.tickets)))
        now, rules = self.attached()
        behind = self.lag(now, version)
        if behind is None:
            raise RefusedCall
        self.expire()
        tickets, why = [], "draining" if self.draining else "lag" if behind > rules.max_lag else ""
        if not why:
            for index in self.indices("returned")[:want]:
                self.redelivered += 1
                tickets.append(self.grant(index, worker, lease))
            while len(tickets) < want and not (why := self.closed(behind)):
                index = self.next_prompt()
                self.prompts[index] = Prompt("reserved")
                tickets.append(self.grant(index, worker, lease))
        answer = Reservation(tuple(tickets), now, why)
        self.replies[worker] = (request, self.clock, answer)
        return answer

    def grant(self, index: int, worker: str, lease: float) -> Ticket:
        self.fences += 1
        prompt = self.prompts[index]
        prompt.holder = worker
        prompt.state, prompt.fence, prompt.ends, prompt.lapsed = "reserved", self.fences, self.clock + lease, False
        return Ticket(index, self.fences, prompt.ends, prompt.payload or None)

    def again(self, ticket: Ticket) -> Ticket:
        """A ticket that is handed out a second time: with the partial while it is good for anything."""
        prompt = self.mine(ticket)
        return replace(ticket, partial=(prompt.payload or None) if prompt and prompt.leased else None)

    def renew(self, worker: str, tickets: Sequence[Ticket], lease: float) -> tuple[int, ...]:
        lost = []
        for ticket in tickets:
            prompt = self.mine(ticket)
            if prompt and prompt.leased:
                prompt.state, prompt.lapsed, prompt.ends = "reserved", False, self.clock + lease
            else:
                lost.append(ticket.index)
        return tuple(lost)

    def put(self, ticket: Ticket, payload: bytes, binding: Version) -> None:
        prompt = self.mine(ticket)
        if prompt is None or (prompt.state == "returned" and not prompt.lapsed):
            raise FencedCall
        if prompt.leased:
            prompt.state, prompt.lapsed, prompt.payload = "stored", False, payload
            prompt.binding, prompt.since = binding, self.clock

    def put_all(self, groups: Sequence[Finished]) -> tuple[int, ...]:
        fenced = []
        for group in groups:
            try:
                self.put(*group)
            except FencedCall:
                fenced.append(group.ticket.index)
        return tuple(fenced)

    def release(self, ticket: Ticket, partial: bytes | None) -> None:
        prompt = self.mine(ticket)
        if prompt is None or prompt.state not in ("reserved", "returned"):
            raise FencedCall
        if prompt.leased:
            prompt.state, prompt.lapsed, prompt.payload = "returned", False, partial or b""

    def refuse(self, ticket: Ticket, reason: str, cause: str = "") -> None:
        prompt, any_one = self.mine(ticket), self.prompts.get(ticket.index)
        if prompt and prompt.leased:
            self.drop([ticket.index], reason)
            self.refused[reason] += 1
            self.causes[reason] = cause
        elif any_one and any_one.state not in ENDED:
            raise FencedCall

    def expire(self) -> int:
        return self.end_leases([i for i in self.indices("reserved") if self.prompts[i].ends <= self.clock])

    def lapse(self, worker: str = "") -> int:
        return self.end_leases([i for i in self.indices("reserved") if not worker or self.prompts[i].holder == worker])

    def end_leases(self, indices: Sequence[int]) -> int:
        for index in indices:
            self.prompts[index].state, self.prompts[index].lapsed = "returned", True
        return len(indices)

    # --- the learner --------------------------------------------------------------------------------

    def taken_for(self, step: int) -> list[int]:
        return [index for index in self.indices("taken") if self.prompts[index].step == step]

    def take(self, version: Version, want: int) -> Taken:
        now, (_, rules) = self.newest_learner(version), self.attached()
        if version.step - now.step not in (0, 1):
            raise RefusedCall
        lags = {index: self.lag(version, self.prompts[index].binding) for index in self.indices("stored")}
        stale = self.drop([index for index, lag in lags.items() if lag is None or lag > rules.max_lag], "stale")
        waiting = sorted(self.indices("stored"), key=lambda index: (self.prompts[index].again, index))
        for index in waiting[: max(0, want - len(self.taken_for(version.step)))]:
            self.prompts[index].state, self.prompts[index].step = "taken", version.step
        groups = tuple(Stored(index, self.prompts[index].payload) for index in self.taken_for(version.step))
        no_more = self.closed(0) in ("draining", "data_end") and not self.indices("returned", "reserved", "stored")
        return Taken(groups, stale, no_more)

    def discard(self, version: Version, indices: Sequence[int], reason: str) -> None:
        if not indices:
            return
        self.newest_learner(version)
        alive = [i for i in dict.fromkeys(indices) if i in self.prompts and self.prompts[i].state not in ENDED]
        if not set(alive) <= set(self.taken_for(version.step)):
            raise RefusedCall
        self.drop(alive, reason)

    def advance(self, version: Version) -> None:
        now = self.newest_learner(version)
        if version.step <= now.step:
            return
        if version.step > now.step + 1:
            raise RefusedCall
        for index in self.indices("taken"):
            prompt = self.prompts[index]
            if prompt.step <= now.step:
                prompt.state, prompt.step = "applied", version.step
        self.now = version

    def used_until(self, version: Version) -> list[int]:
        if version.step > self.newest_learner(version).step:
            raise RefusedCall
        return [index for index in self.indices("applied") if self.prompts[index].step <= version.step]

    def commit(self, version: Version) -> int:
        used = self.used_until(version)
        for index in used:
            self.prompts[index] = Prompt("committed")
        last = self.last_commit
        if last is None or last.lineage != version.lineage or last.step < version.step:
            self.last_commit = version
        return len(used)

    def states(self, version: Version) -> States:
        """What a checkpoint of `version` knows."""
        used = set(self.used_until(version))
        return {
            index: ("committed", "") if index in used else (p.state, p.reason) if p.state in ENDED else ("open", "")
            for index, p in self.prompts.items()
        }

    def memo(self, version: Version) -> LedgerMemo:
        states, last = self.states(version), self.last_commit
        if last and last.lineage == version.lineage and version.step < last.step:
            raise RefusedCall
        counts = Counter(state for state, _ in states.values())
        still = tuple(sorted(index for index, (state, _) in states.items() if state == "open"))
        ahead = tuple(index for index in sorted(states) if index > self.next_prompt())
        return LedgerMemo(len(states), counts["committed"], dict(self.dropped()), still, dict(self.forks), ahead)

    # --- looking on ---------------------------------------------------------------------------------

    def published(self) -> Version:
        return self.attached()[0]

    def gate(self) -> str:
        return self.closed(0)

    def counts(self) -> LedgerCounts:
        now, _ = self.attached()
        return LedgerCounts(
            issued=len(self.prompts),
            by_state={state: len(self.indices(state)) for state in STATES},
            dropped=dict(self.dropped()),
            payload_bytes=self.payload_bytes(),
            published=now,
            redelivered=self.redelivered,
            refused=dict(self.refused),
            causes=dict(self.causes),
            queue_age=max([self.clock - self.prompts[index].since for index in self.indices("stored")], default=0.0),
        )

    # --- known for a while --------------------------------------------------------------------------

    def pin(self, version: Version, reader: str, seconds: float) -> None:
        self.pins[version, reader] = self.clock + seconds

    def unpin(self, version: Version, reader: str) -> None:
        self.pins.pop((version, reader), None)

    def pinned(self) -> frozenset[Version]:
        return frozenset(version for (version, _), ends in self.pins.items() if ends > self.clock)

    def announce(self, worker: str, facts: Mapping[str, str | float], ttl: float) -> None:
        self.present[worker] = (self.clock + ttl, facts)

    def workers(self) -> dict[str, Mapping[str, str | float]]:
        return {worker: facts for worker, (ends, facts) in self.present.items() if ends > self.clock}
