"""A server that is frozen, or whose disk is full: said in time, waited for, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import small_disk
from ledger_steps import RULES, payload

from penstock.services.contracts import StoreError
from penstock.services.store.server import PrivateServer
from penstock.services.versions import FIRST

MANY = RULES.__class__(max_lag=1000, groups_per_step=1000, prompts=None, max_bytes=10**9)
SIZE = 64 * 1024


def opened(server: PrivateServer, deadline: float):
    store = server.address("run", deadline).connect()
    store.attach(MANY)
    store.reconcile(FIRST, 0, "start")
    return store


def put(store, number: int) -> int:
    """Both calls are acknowledged when this returns."""
    (ticket,) = store.reserve("w", FIRST, 1, 60.0, f"request {number}").tickets
    store.put(ticket, payload(ticket.index, SIZE), FIRST)
    return ticket.index


def everything(store) -> dict[int, bytes]:
    return {group.index: group.payload for group in store.take(FIRST, 10**6).groups}


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[PrivateServer]:
    """A server that a test may stop; it goes on at the end."""
    with PrivateServer(tmp_path / "store", tmp_path / "store.log") as server:
        yield server
        os.kill(server.pid or 0, signal.SIGCONT)


def test_a_frozen_server_is_an_error_within_the_deadline_and_has_lost_nothing_afterwards(frozen):
    store = opened(frozen, deadline=0.6)
    there = [put(store, number) for number in range(5)]
    os.kill(frozen.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(
        StoreError, match=r"put: the Redis server .* did not answer for .* \(store\.deadline is 0\.6 s\)"
    ):
        store.put(store_ticket(), b"x", FIRST)
    assert time.monotonic() - began < 3.0
    os.kill(frozen.pid, signal.SIGCONT)
    assert list(everything(store)) == there


def store_ticket():
    from penstock.services.replay import Ticket

    return Ticket(0, 1, 0.0)


def test_a_call_to_a_frozen_server_returns_when_it_goes_on(frozen):
    store = opened(frozen, deadline=20.0)
    os.kill(frozen.pid, signal.SIGSTOP)
    thaw = threading.Timer(0.4, os.kill, (frozen.pid, signal.SIGCONT))
    thaw.start()
    assert put(store, 1) == 0
    thaw.join()
    assert store.counts().balanced


def test_a_full_disk_is_waited_for_and_named_and_what_was_acknowledged_survives_it(tmp_path):
    with small_disk(tmp_path / "disk") as disk, PrivateServer(disk / "store", tmp_path / "store.log") as server:
        (disk / "ballast").write_bytes(b"x" * 2 * 2**20)
        store, there = opened(server, deadline=0.8), []
        with pytest.raises(StoreError, match=r"No space left on device \(it cannot write to its disk: make space"):
            for number in range(100):
                there.append(put(store, number))
        assert 3 <= len(there) < 20
        patient = server.address("run", 20.0).connect()
        room = threading.Timer(0.3, (disk / "ballast").unlink)
        room.start()
        for number in range(100, 103):  # the first of them waits until there is room
            there.append(put(patient, number))
        room.join()
        counts = patient.counts()
        assert counts.balanced and counts.by_state["stored"] == len(there)
        os.kill(server.pid, signal.SIGKILL)
        while server.alive:
            time.sleep(0.01)
        server.start()
        assert everything(patient) == {index: payload(index, SIZE) for index in there}


def test_who_waits_for_groups_of_a_server_that_is_gone_waits_and_the_next_question_says_so(tmp_path):
    with PrivateServer(tmp_path / "store", tmp_path / "store.log") as server:
        store = opened(server, deadline=0.6)
    began = time.monotonic()
    store.await_arrival(0.3)
    assert 0.3 <= time.monotonic() - began < 2.0
    with pytest.raises(StoreError, match="did not answer"):
        store.take(FIRST, 1)


def test_who_waits_for_groups_of_a_frozen_server_is_not_held_for_as_long_as_who_asks(frozen):
    store = opened(frozen, deadline=30.0)
    os.kill(frozen.pid, signal.SIGSTOP)
    began = time.monotonic()
    store.await_arrival(0.1)
    assert time.monotonic() - began < 3.0
