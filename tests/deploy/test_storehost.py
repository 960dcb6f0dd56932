"""A private server that lives and does not answer, and a run that waits for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from penstock.deploy import storehost
from penstock.deploy.storehost import StoreHost
from penstock.services.contracts import StoreError
from penstock.services.replay import LedgerRules
from penstock.services.rundir import RunDir
from penstock.services.store.config import StoreSection
from penstock.services.versions import FIRST

NOTHING = StoreError("counts: no answer")


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Seconds, set by a test."""
    now = [1000.0]
    monkeypatch.setattr(storehost.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def host(tmp_path, clock) -> Iterator[StoreHost]:
    opened = StoreHost(StoreSection(deadline=20), RunDir.create(tmp_path, "run", "name: run\n"), "run", None)
    opened.store.attach(LedgerRules(2, 4, None, 10**8))
    opened.store.reconcile(FIRST, 0, "start")
    yield opened
    opened.close()


def test_people_are_told_once_of_a_store_that_does_not_answer_and_again_of_the_next_time(host, clock):
    assert host.is_silent(NOTHING) == ""
    clock[0] += 4
    told = host.is_silent(NOTHING)
    assert told.startswith("the store has not answered for 4 s; ") and "20 s (store.deadline): counts" in told
    assert host.is_silent(NOTHING) == ""
    host.answers()
    clock[0] += 4
    assert host.is_silent(NOTHING) != ""


def test_after_half_the_deadline_a_frozen_server_is_ended_and_what_it_had_acknowledged_is_there_again(host, clock):
    assert host._server is not None and host._server.pid is not None
    issued = host.store.counts().issued
    os.kill(host._server.pid, signal.SIGSTOP)
    clock[0] += 9
    host.is_silent(NOTHING)
    assert host.revive() is None
    clock[0] += 2
    assert host.is_silent(NOTHING) == ""
    assert host.revive() == "it had not answered for 11 s, half of store.deadline, and was ended"
    assert host.restarts == 1 and host.store.counts().issued == issued
    assert host.is_silent(NOTHING) == ""
