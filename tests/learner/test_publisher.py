"""Publication beside the training: order, overlap, failure, old versions."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from learner_parts import MemorySender

from penstock.learner.publisher import Publisher
from penstock.services.contracts import DeadlinePassed, WeightsError
from penstock.services.replay import LedgerRules
from penstock.services.store.memory import MemoryStore
from penstock.services.versions import FIRST, Version


def parts():
    store, sender = MemoryStore(), MemorySender()
    store.attach(LedgerRules(1, 2, None, 10**8))
    store.reconcile(FIRST, 0, "start")
    return store, sender, Publisher(store, sender)


WEIGHTS = {"w": torch.ones(2)}


def nothing():
    pass


def test_the_gate_opens_only_after_the_weights_can_be_fetched():
    store, sender, publisher = parts()
    sender.delay = 0.2
    publisher.start(Version(0, 1), WEIGHTS, None, advance=True)
    assert store.published() == FIRST
    publisher.wait(nothing, 10.0)
    assert store.published() == Version(0, 1)
    assert publisher.seconds >= 0.2


def test_training_goes_on_while_weights_are_published():
    _, sender, publisher = parts()
    sender.delay = 0.3
    began = time.monotonic()
    publisher.start(Version(0, 1), WEIGHTS, None, advance=True)
    assert time.monotonic() - began < 0.2
    publisher.wait(nothing, 10.0)


def test_a_failure_surfaces_in_the_loop_and_the_gate_stays_shut():
    store, sender, publisher = parts()
    sender.failure = WeightsError("no space left in shared memory")
    publisher.start(Version(0, 1), WEIGHTS, None, advance=True)
    with pytest.raises(WeightsError, match="no space left"):
        publisher.wait(nothing, 10.0)
    assert store.published() == FIRST
    publisher.check()  # said once


def test_a_publication_that_hangs_is_named_with_its_transport():
    _, sender, publisher = parts()
    held = threading.Event()
    sender.publish = lambda version, tensors, probe: held.wait(20)
    publisher.start(Version(0, 1), WEIGHTS, None, advance=True)
    calls = []
    with pytest.raises(DeadlinePassed, match=r"publishing version 0\.1 has taken .* \(MemorySender\)"):
        publisher.wait(lambda: calls.append(1), 0.6)
    held.set()
    assert calls


def test_old_versions_go_but_for_the_last_two_and_what_is_pinned():
    store, sender, publisher = parts()
    for step in range(5):
        if step == 1:
            store.pin(FIRST, "audit", 60.0)
        publisher.start(Version(0, step), WEIGHTS, None, advance=step > 0)
        publisher.wait(nothing, 10.0)
    assert set(sender.versions) == {FIRST, Version(0, 3), Version(0, 4)}


def test_for_audits_the_newest_versions_stay_pinned_and_readable():
    store, sender, _ = parts()
    publisher = Publisher(store, sender, keeps=3, deadline=60.0)
    for step in range(1, 7):
        publisher.start(Version(0, step), WEIGHTS, None, advance=False)
        publisher.wait(nothing, 10.0)
        assert len(sender.versions) <= 4
    assert store.pinned() == {Version(0, step) for step in (4, 5, 6)}
    assert set(sender.versions) == store.pinned()
