"""A store that falls silent is told of once, soon, and once when it is back."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from penstock.deploy.store_watch import StoreWatch
from penstock.rollout.leases import holder
from penstock.services.contracts import StoreError
from penstock.services.replay import LedgerRules, ReplayStore
from penstock.services.store.memory import MemoryStore
from penstock.services.store.server import PrivateServer
from penstock.services.versions import FIRST


class Journal:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def warn(self, message: str) -> None:
        self.tell("warning", message)

    def tell(self, kind: str, message: str) -> None:
        self.told.append((kind, message))


class Away(MemoryStore):
    """A store that may be away."""

    away = False

    def lapse(self, worker: str = "") -> int:
        if self.away:
            raise StoreError("lapse: away")
        return super().lapse(worker)


class Host:
    def __init__(self, glance: ReplayStore) -> None:
        self.glance = glance
        self.told: list[str] = []

    def is_silent(self) -> None:
        self.told.append("silent")

    def answers(self) -> None:
        self.told.append("answers")


def test_a_frozen_store_is_told_of_within_seconds_and_once(tmp_path: Path) -> None:
    journal = Journal()
    with PrivateServer(tmp_path / "store", tmp_path / "store.log") as server:
        address = server.address("run")
        store = address.connect()
        store.attach(LedgerRules(max_lag=0, groups_per_step=4, prompts=None, max_bytes=10**6))
        store.reconcile(FIRST, 0, "start")
        host = Host(replace(address, deadline=0.3).connect())
        watch = StoreWatch(host, journal, deadline=30.0)
        seen = watch.look()
        assert seen is not None and seen.counts.issued == 0 and seen.closed == ""
        os.kill(server.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert [watch.look(), watch.look()] == [None, None]
            assert time.monotonic() - began < 5.0
            ((kind, said),) = journal.told
            assert kind == "warning"
            assert "the store is away: expire: the Redis server at unix:" in said
            assert said.endswith("Whoever needs it waits for 30 s (store.deadline)")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert watch.look() == seen
    assert [kind for kind, _ in journal.told] == ["warning", "store_back"]
    assert host.told == ["answers", "silent", "silent", "answers"]


def test_what_a_dead_worker_held_goes_back_as_soon_as_the_store_answers() -> None:
    store = Away()
    store.attach(LedgerRules(max_lag=0, groups_per_step=4, prompts=None, max_bytes=10**6))
    store.reconcile(FIRST, 0, "start")
    dead, alive = holder("rollout-0", 0), holder("rollout-0", 1)
    for name in (dead, dead, alive):
        store.reserve(name, FIRST, 1, 60.0, f"{name}-{store.counts().issued}")
    watch = StoreWatch(Host(store), Journal(), deadline=30.0)
    watch.lapse(SimpleNamespace(name="rollout-0", restarts=0))
    store.away = True
    assert watch.look() is None
    store.away = False
    seen = watch.look()
    assert seen is not None and (seen.counts.by_state["returned"], seen.counts.by_state["reserved"]) == (2, 1)
    store.reserve(dead, FIRST, 1, 60.0, "once more")
    watch.look()
    assert store.counts().by_state["returned"] == 1, "it is done once"
