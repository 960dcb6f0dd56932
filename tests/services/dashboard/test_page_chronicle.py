"""Events in memory: the newest, and those that are marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.services.dashboard.chronicle import MARKED, RECENT, Chronicle
from penstock.services.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path, "sort", "name: sort\n")


def test_events_come_once_with_their_facts_and_the_step_that_was_under_way(run: RunDir) -> None:
    chronicle = Chronicle(run.events, lambda _: 42)
    run.add_event("joined", "rollout-0 begins", name="rollout-0")
    run.add_event("guard", "kl/reference > 0.2", by="guard kl/reference", step=7)
    assert chronicle.follow()
    joined, guard = chronicle.after(0)
    assert (joined.number, joined.kind, joined.step, joined.facts) == (1, "joined", 42, {"name": "rollout-0"})
    assert (guard.number, guard.step, guard.message) == (2, 7, "kl/reference > 0.2")
    assert chronicle.after(1) == [guard]
    assert chronicle.after(2) == []
    assert not chronicle.follow()


def test_marks_are_remembered_longer_than_the_rest(run: RunDir) -> None:
    chronicle = Chronicle(run.events, lambda _: 0)
    run.add_event("steered", "page: a checkpoint")
    for _ in range(RECENT + 10):
        run.add_event("checkpoint", "checkpoint")
    chronicle.follow()
    told = chronicle.after(0)
    assert told[0].kind == "steered"
    assert len(told) == RECENT + 1
    assert RECENT < MARKED


def test_a_damaged_line_does_not_hide_the_others(run: RunDir) -> None:
    damaged = (b"nonsense", b"[1]", b"{}", b'{"time": "now"}', b'{"time": null}', b'{"time": 1, "kind": "\xff"}')
    run.events.write_bytes(b"\n".join((*damaged, b'{"time": 1, "kind": "training", "message": "training"}', b"")))
    chronicle = Chronicle(run.events, lambda _: 0)
    chronicle.follow()
    assert [entry.kind for entry in chronicle.after(0)] == ["training"]
