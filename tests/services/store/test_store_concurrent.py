"""Many workers and one learner at once, every one with a connection of its own; the books balance at every moment."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from ledger_steps import RULES, payload

from penstock.services.contracts import Fenced
from penstock.services.replay import ReplayStore
from penstock.services.store.memory import MemoryStore
from penstock.services.versions import FIRST, Version

GROUPS, MAX_LAG, STEPS, WORKERS = 4, 2, 25, 4


class Crowd:
    """Runs loops in threads until the learner is done; the first error of any thread fails the test."""

    def __init__(self, connect: Callable[[], ReplayStore]) -> None:
        self.connect = connect
        self.done = threading.Event()
        self.errors: list[BaseException] = []
        self.fenced = 0
        self.checks = 0
        self.applied: Counter[int] = Counter()
        self.lags: list[int] = []

    def run(self) -> None:
        bodies = [lambda seed=seed: self.work(seed) for seed in range(WORKERS)]
        threads = [threading.Thread(target=self.guard, args=(body,)) for body in [*bodies, self.learn, self.watch]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a thread hangs"
        if self.errors:
            raise self.errors[0]

    def guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001  (raised again in the test's own thread)
            self.errors.append(error)
            self.done.set()

    def work(self, seed: int) -> None:
        """A worker that swaps late, dies at times, hands groups back, and repeats calls whose reply it did not see."""
        store, chance, at, count = self.connect(), random.Random(seed), FIRST, 0
        while not self.done.is_set():
            count += 1
            request, lease = f"{count}", chance.choice([0.0, 30.0, 30.0, 30.0])
            answer = store.reserve(f"w{seed}", at, chance.randint(1, 3), lease, request)
            if chance.random() < 0.2 and lease:
                again = store.reserve(f"w{seed}", at, 3, lease, request)
                assert [t.fence for t in again.tickets] == [t.fence for t in answer.tickets]
            # A lease that has ended at once goes to a rival, and both finish.
            rival = store.reserve(f"rival-{seed}", at, 3, 30.0, request).tickets if not lease else ()
            for ticket in (*rival, *answer.tickets):
                self.finish(store, ticket, at, chance)
            if not answer.tickets or chance.random() < 0.5:
                at = answer.published
            if not answer.tickets:
                self.done.wait(0.002)

    def finish(self, store: ReplayStore, ticket, at: Version, chance: random.Random) -> None:
        what = chance.random()
        try:
            if what < 0.1:
                store.release(ticket, b"half")
            elif what < 0.15:
                store.refuse(ticket, "quorum")
            else:
                for _ in range(chance.choice([1, 1, 2])):
                    store.put(ticket, payload(ticket.index), at)
        except Fenced:
            self.fenced += 1

    def learn(self) -> None:
        store, chance, version = self.connect(), random.Random(99), FIRST
        for _ in range(STEPS):
            rejected: set[int] = set()
            while len(groups := store.take(version, GROUPS).groups) < GROUPS:
                fresh = [g.index for g in groups if g.index not in rejected and chance.random() < 0.1]
                store.discard(version, fresh, "no_signal")
                rejected |= set(fresh)
                self.done.wait(0.002)
                if self.done.is_set():
                    return
            for group in groups:
                assert group.payload == payload(group.index)
            self.applied.update(group.index for group in groups)
            version = version.next()
            store.advance(version)
            if version.step % 5 == 0:
                store.commit(version)
        self.done.set()

    def watch(self) -> None:
        store = self.connect()
        while not self.done.is_set():
            counts = store.counts()
            assert counts.balanced, counts
            assert counts.outstanding <= (MAX_LAG + 1) * GROUPS
            self.checks += 1


@pytest.fixture(params=["memory", "redis"])
def connect(request: pytest.FixtureRequest, run_id: str) -> Callable[[], ReplayStore]:
    if request.param == "memory":
        store = MemoryStore()
        return lambda: store
    server = request.getfixturevalue("server")
    return lambda: server.address(run_id, deadline=10.0).connect()


def test_with_many_workers_and_a_learner_at_once_no_group_is_lost_or_used_twice(connect):
    store = connect()
    store.attach(replace(RULES, max_lag=MAX_LAG, groups_per_step=GROUPS))
    store.reconcile(FIRST, 0, "start")
    crowd = Crowd(connect)
    crowd.run()
    assert crowd.checks > 20
    assert crowd.fenced > 0, "no lease was ever lost: the walk is too tame"
    assert max(crowd.applied.values()) == 1
    counts = store.counts()
    assert counts.balanced
    assert counts.by_state["committed"] + counts.by_state["applied"] == STEPS * GROUPS == len(crowd.applied)
    store.drain("run ended")
    assert store.commit(Version(0, STEPS)) == 0
    end = store.counts()
    assert end.issued == end.by_state["committed"] + end.by_state["dropped"]
    assert end.payload_bytes == 0


def test_nothing_remains_of_what_is_committed_or_dropped_but_counters(redis_store, server):
    import redis

    redis_store.attach(replace(RULES, max_lag=0))
    at = redis_store.reconcile(FIRST, 0, "start")
    client = redis.Redis.from_url(server.url, password=server.address("look").password)

    def keys() -> set[bytes]:
        return set(client.scan_iter(match=f"penstock:{{{redis_store.run_id}}}:*"))

    def round_(count: int) -> None:
        nonlocal at
        tickets = redis_store.reserve("w", at, 4, 60.0, f"r{count}").tickets
        redis_store.refuse(tickets[0], "quorum")
        for ticket in tickets[1:]:
            redis_store.put(ticket, b"x" * 100, at)
        redis_store.discard(at, [redis_store.take(at, 1).groups[0].index], "no_signal")
        redis_store.take(at, 4)
        at = at.next()
        redis_store.advance(at)
        redis_store.commit(at)

    round_(0)
    after_one = keys()
    for count in range(1, 30):
        round_(count)
    assert keys() == after_one
    assert not [key for key in after_one if b"entry" in key]
    assert redis_store.counts().by_state == {
        "returned": 0, "reserved": 0, "stored": 0, "taken": 0, "applied": 0, "committed": 60, "dropped": 60
    }  # fmt: skip
    assert redis_store.counts().payload_bytes == 0


def test_a_learner_that_waits_is_not_sent_the_same_payloads_again(redis_store, server):
    import redis

    redis_store.attach(RULES)
    redis_store.reconcile(FIRST, 0, "start")
    for ticket in redis_store.reserve("w", FIRST, 3, 60.0, "r").tickets:
        redis_store.put(ticket, b"x" * 100_000, FIRST)
    client = redis.Redis.from_url(server.url, password=server.address("look").password)
    redis_store.take(FIRST, 4)
    before = client.info("stats")["total_net_output_bytes"]
    for _ in range(5):
        assert len(redis_store.take(FIRST, 4).groups) == 3
    assert client.info("stats")["total_net_output_bytes"] - before < 50_000
    other = server.address(redis_store.run_id).connect()  # a learner that starts anew knows nothing and gets all
    assert [len(group.payload) for group in other.take(FIRST, 4).groups] == [100_000] * 3
    other.close()


def test_runs_on_one_server_are_kept_apart(server, run_id):
    one, other = (server.address(f"{run_id}-{name}").connect() for name in ("one", "other"))
    for store in (one, other):
        store.attach(RULES)
        store.reconcile(FIRST, 0, "start")
    one.reserve("w", FIRST, 3, 60.0, "r")
    one.announce("w", {}, 30.0)
    one.pin(FIRST, "w", 30.0)
    assert other.counts().issued == 0
    assert (other.workers(), other.pinned()) == ({}, frozenset())
    assert one.erase() > 0
    assert other.counts().issued == 0
    with pytest.raises(Exception, match="does not know this run"):
        one.counts()
    one.close(), other.close()


def test_a_run_id_that_cannot_be_part_of_a_key_is_refused(server):
    with pytest.raises(ValueError, match="a run id has"):
        server.address("runs/{7}").connect()
