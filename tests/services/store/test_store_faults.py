"""What a network does to one call, and what the ledger makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_faults import Fault
from ledger_places import RedisPlace
from ledger_steps import RULES, play, reserve, states

from penstock.services.contracts import StoreError
from penstock.services.store.connection import script
from penstock.services.versions import FIRST


@pytest.fixture
def place(tmp_path: Path) -> Iterator[RedisPlace]:
    place = RedisPlace(tmp_path)
    place.begin()
    yield place
    place.stop()


@pytest.fixture
def store(place: RedisPlace):
    """A client behind the network, of a run that has begun."""
    store = place.connect()
    store.attach(RULES)
    store.reconcile(FIRST, 0, "start")
    return store


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE])
def test_a_call_that_meets_any_fault_takes_effect_once(place, store, fault):
    play(store, 2)
    place.network.plan(fault)
    assert [group.index for group in store.take(FIRST, 1).groups] == [0]
    assert place.network.passed.broken
    assert states(store) == {"stored": 1, "taken": 1}


def test_a_request_is_cut_or_lost_without_effect_and_a_lost_reply_has_had_it(place, store):
    store._connection._deadline = 0.0  # gives up at once
    for fault, reserved in ((Fault.REQUEST_LOST, 0), (Fault.REQUEST_CUT, 0), (Fault.REPLY_LOST, 1)):
        place.network.plan(fault)
        with pytest.raises(StoreError, match="did not answer"):
            reserve(store, 1)
        assert place.onlooker.counts().by_state["reserved"] == reserved


@pytest.mark.parametrize("said", [("drain", "run_ended"), ("hold", True)])
def test_an_order_of_a_run_that_has_ended_does_not_reach_the_one_that_resumed_it(place, store, said):
    name, argument = said
    place.raw.script_load(script(name)[0])
    reserve(store, 2)
    store._connection._deadline = 0.0
    place.network.plan(Fault.LATE)
    with pytest.raises(StoreError, match="did not answer"):
        getattr(store, name)(argument)
    place.network.plan()
    resumed = place.connect()
    version = resumed.reconcile(FIRST, 0, "resume")
    assert place.network.deliver_late(0) == (name, b"forks")
    assert states(resumed) == {"reserved": 2}
    assert len(reserve(resumed, 1, version=version)) == 1
