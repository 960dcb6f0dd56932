"""A random walk over all calls: Redis and the plain Python store must agree after every step."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ledger_steps import RULES, payload

from penstock.services import staleness
from penstock.services.contracts import Fenced, StoreError
from penstock.services.replay import Finished, LedgerMemo, ReplayStore, Ticket
from penstock.services.store.lineages import Tree
from penstock.services.store.memory import MemoryStore
from penstock.services.store.server import PrivateServer
from penstock.services.versions import FIRST, Version

_runs = itertools.count()
_FOREVER = 1e9


def strip(ticket: Ticket) -> tuple[int, int, bytes | None]:
    """A ticket without the end of its lease, which differs by the moment of the call."""
    return ticket.index, ticket.fence, ticket.partial


class Walk(RuleBasedStateMachine):
    """Every rule makes the same call on both stores and compares what comes back.

    Leases are endless or have ended at once, so that nothing depends on how fast the walk goes."""

    server: PrivateServer

    def __init__(self) -> None:
        super().__init__()
        self.redis = self.server.address(f"walk-{next(_runs)}", deadline=10.0).connect()
        self.stores: tuple[ReplayStore, ReplayStore] = (MemoryStore(), self.redis)
        self.requests = itertools.count()
        self.tickets: list[tuple[Ticket, ...]] = []
        self.checkpoints: list[tuple[Version, LedgerMemo]] = []
        self.versions = [FIRST]

    def both(self, call, *arguments):
        """The answers, or the kinds of error, of the two stores."""
        answers = []
        for which, store in enumerate(self.stores):
            try:
                answers.append(call(store, which, *arguments))
            except (Fenced, StoreError) as error:
                answers.append(Fenced if isinstance(error, Fenced) else StoreError)
        return answers

    def same(self, call, *arguments):
        mine, theirs = self.both(call, *arguments)
        assert mine == theirs
        return mine

    @initialize(
        max_lag=st.integers(0, 3),
        groups=st.integers(1, 3),
        prompts=st.none() | st.integers(0, 30),
        max_bytes=st.sampled_from([60, 10**9]),
    )
    def open(self, max_lag: int, groups: int, prompts: int | None, max_bytes: int) -> None:
        rules = replace(RULES, max_lag=max_lag, groups_per_step=groups, prompts=prompts, max_bytes=max_bytes)
        self.groups = groups
        for store in self.stores:
            store.attach(rules)
            store.reconcile(FIRST, 0, "start")

    def teardown(self) -> None:
        self.redis.erase()
        self.redis.close()

    @property
    def now(self) -> Version:
        return self.stores[0].published()

    @rule(want=st.integers(1, 6), ended=st.booleans(), worker=st.sampled_from("ab"), back=st.integers(0, 3))
    def reserve(self, want: int, ended: bool, worker: str, back: int) -> None:
        version = self.versions[max(0, len(self.versions) - 1 - back)]
        request, lease = str(next(self.requests)), 0.0 if ended else _FOREVER
        mine, theirs = self.both(lambda store, _: store.reserve(worker, version, want, lease, request))
        assert [*map(strip, mine.tickets)] == [*map(strip, theirs.tickets)]
        assert (mine.closed, mine.published) == (theirs.closed, theirs.published)
        self.tickets += zip(mine.tickets, theirs.tickets, strict=True)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), size=st.integers(1, 40), back=st.integers(0, 3))
    def put(self, data: st.DataObject, size: int, back: int) -> None:
        pair = data.draw(st.sampled_from(self.tickets))
        binding = self.versions[max(0, len(self.versions) - 1 - back)]
        self.same(lambda store, which: store.put(pair[which], payload(pair[0].index, size), binding))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), size=st.integers(1, 40), back=st.integers(0, 3))
    def put_all(self, data: st.DataObject, size: int, back: int) -> None:
        """Several at once, of any state and some of them twice."""
        pairs = data.draw(st.lists(st.sampled_from(self.tickets), max_size=5))
        binding = self.versions[max(0, len(self.versions) - 1 - back)]
        groups = [[Finished(pair[which], payload(pair[0].index, size), binding) for pair in pairs] for which in (0, 1)]
        self.same(lambda store, which: store.put_all(groups[which]))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), partial=st.none() | st.binary(min_size=1, max_size=20))
    def release(self, data: st.DataObject, partial: bytes | None) -> None:
        pair = data.draw(st.sampled_from(self.tickets))
        self.same(lambda store, which: store.release(pair[which], partial))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        pair = data.draw(st.sampled_from(self.tickets))
        self.same(lambda store, which: store.refuse(pair[which], "quorum", f"group {pair[0].index}"))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), ended=st.booleans())
    def renew(self, data: st.DataObject, ended: bool) -> None:
        pairs = data.draw(st.lists(st.sampled_from(self.tickets), max_size=4, unique_by=lambda pair: pair[0].fence))
        lease = 0.0 if ended else _FOREVER
        self.same(lambda store, which: store.renew("w", [pair[which] for pair in pairs], lease))

    @rule()
    def expire(self) -> None:
        self.same(lambda store, _: store.expire())

    @rule(ahead=st.integers(0, 2), want=st.integers(0, 4))
    def take(self, ahead: int, want: int) -> None:
        version = Version(self.now.lineage, self.now.step + ahead)
        self.same(lambda store, _: store.take(version, want))

    @rule(data=st.data(), ahead=st.integers(0, 1))
    def discard(self, data: st.DataObject, ahead: int) -> None:
        version = Version(self.now.lineage, self.now.step + ahead)
        held = [group.index for group in self.stores[0].take(version, 0).groups]
        self.stores[1].take(version, 0)
        some = data.draw(st.lists(st.sampled_from([*held, 0, 3]), max_size=3))
        self.same(lambda store, _: store.discard(version, some, "no_signal"))

    @rule()
    def advance(self) -> None:
        version = self.now.next()
        self.same(lambda store, _: store.advance(version))
        self.versions.append(version)

    @rule(back=st.integers(0, 2))
    def save(self, back: int) -> None:
        version = Version(self.now.lineage, max(0, self.now.step - back))
        memo = self.same(lambda store, _: store.memo(version))
        self.same(lambda store, _: store.commit(version))
        # A version before the fork is not one of this lineage, so no checkpoint has its name.
        if back == 0:
            self.checkpoints.append((version, memo))

    @precondition(lambda self: self.checkpoints)
    @rule(data=st.data(), remembers=st.booleans())
    def resume(self, data: st.DataObject, remembers: bool) -> None:
        version, memo = data.draw(st.sampled_from(self.checkpoints))
        request = str(next(self.requests))
        known = memo if remembers else None
        for _ in range(2):  # the second is a repetition
            opened = self.same(lambda store, _: store.reconcile(version, memo.issued, request, known))
        self.versions.append(opened)

    @rule(really=st.integers(0, 9))
    def drain(self, really: int) -> None:
        if really == 0:
            self.same(lambda store, _: store.drain("run ended"))

    @rule(held=st.booleans())
    def hold(self, held: bool) -> None:
        self.same(lambda store, _: store.hold(held))

    @rule(max_lag=st.integers(0, 3))
    def amend(self, max_lag: int) -> None:
        for store in self.stores:
            store.amend(replace(RULES, max_lag=max_lag, groups_per_step=self.groups))

    @invariant()
    def books_are_balanced_and_equal(self) -> None:
        if self.stores[0]._rules is None:  # before `open`
            return
        counts = self.same(lambda store, _: store.counts())
        assert counts.balanced, counts
        self.same(lambda store, _: (store.gate(), store.published(), store.forks()))


def test_redis_and_memory_agree_on_any_walk(server):
    Walk.server = server
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_lag_that_the_script_computes_is_that_of_staleness(server, data):
    """One group of a random version of a random tree is stale at max_lag = lag - 1 and is not at max_lag = lag."""
    known = [FIRST]
    forks: dict[int, Version] = {}
    with_redis = server.address(f"lag-{next(_runs)}", deadline=10.0).connect()
    with_redis.attach(replace(RULES, max_lag=10**6, groups_per_step=1))
    with_redis.reconcile(FIRST, 0, "start")
    for lineage in range(data.draw(st.integers(0, 3), label="resumes") + 1):
        if lineage:
            forks[lineage] = data.draw(st.sampled_from(known), label="fork")
            known.append(with_redis.reconcile(forks[lineage], 0, f"resume {lineage}"))
        for _ in range(data.draw(st.integers(0, 4), label="steps")):
            known.append(known[-1].next())
            with_redis.advance(known[-1])
    now, sampled = known[-1], data.draw(st.sampled_from(known), label="sampled")
    expected = staleness.lag(now, sampled, forks)
    (ticket,) = with_redis.reserve("w", now, 1, 60.0, "r").tickets
    with_redis.put(ticket, b"x", sampled)
    with_redis.amend(replace(RULES, max_lag=expected))
    assert with_redis.take(now, 0).stale == 0
    with_redis.amend(replace(RULES, max_lag=expected - 1))
    assert with_redis.take(now, 0).stale == 1
    with_redis.erase()
    with_redis.close()


def test_lineages_that_are_only_named_as_a_fork_are_known():
    tree = Tree(3, {3: Version(2, 50)})
    assert tree.common(Version(3, 60)) == {2: 50, 3: 60}
