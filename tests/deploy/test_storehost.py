"""A private server that lives and does not answer, and a run that waits for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from penstock.deploy import storehost
from penstock.deploy.storehost import StoreHost
from penstock.services.contracts import StoreError
from penstock.services.replay import LedgerRules
from penstock.services.rundir import RunDir
from penstock.services.store.config import StoreSection
from penstock.services.versions import FIRST


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


def test_after_half_the_deadline_a_frozen_server_is_ended_and_what_it_had_acknowledged_is_there_again(host, clock):
    assert host._server is not None and host._server.pid is not None
    issued = host.store.counts().issued
    os.kill(host._server.pid, signal.SIGSTOP)
    clock[0] += 9
    host.is_silent()
    assert host.revive() is None
    clock[0] += 2
    host.is_silent()
    assert host.revive() == "it had not answered for 11 s, half of store.deadline, and was ended"
    assert host.restarts == 1 and host.store.counts().issued == issued
    host.is_silent()
    assert host.revive() is None


def test_whoever_revives_the_server_is_answered_although_it_is_dead_when_he_asks(tmp_path):
    """The end of a run, and its start, ask once; nobody else would start the server again meanwhile."""
    opened = StoreHost(StoreSection(deadline=5), RunDir.create(tmp_path, "run", "name: run\n"), "run", None)
    try:
        opened.surely(lambda store: store.attach(LedgerRules(2, 4, None, 10**8)))
        opened.store.reconcile(FIRST, 0, "start")
        assert opened._server is not None and opened._server.pid is not None
        os.kill(opened._server.pid, signal.SIGKILL)
        assert opened.surely(lambda store: store.drain("run_ended")) == 0
        assert opened.surely(lambda store: store.gate()) == "draining"
        told = opened.revive()
        assert told is not None and "was killed by SIGKILL" in told and opened.restarts == 1
        assert opened.revive() is None
    finally:
        opened.close()


def test_a_call_that_is_refused_is_refused_at_once(tmp_path):
    began = time.monotonic()
    opened = StoreHost(StoreSection(deadline=30), RunDir.create(tmp_path, "run", "name: run\n"), "run", None)
    try:
        with pytest.raises(StoreError, match="does not know this run yet"):
            opened.surely(lambda store: store.counts())
        assert time.monotonic() - began < 15
    finally:
        opened.close()


def test_a_server_that_dies_more_often_than_is_allowed_ends_the_run_with_its_cause(tmp_path):
    section = StoreSection(deadline=5, max_restarts=1)
    opened = StoreHost(section, RunDir.create(tmp_path, "run", "name: run\n"), "run", None)
    try:
        for _ in range(2):
            assert opened._server is not None and opened._server.pid is not None
            os.kill(opened._server.pid, signal.SIGKILL)
            while opened._server.alive:
                time.sleep(0.01)
            if opened.restarts == 0:
                assert "SIGKILL" in str(opened.revive())
        with pytest.raises(StoreError, match=r"has died 2 times \(store.max_restarts is 1\); the last time: .*SIGKILL"):
            opened.revive()
    finally:
        opened.close()
