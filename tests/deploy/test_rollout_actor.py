"""What a rollout worker's actor says, and to whom. Engine, scorers and worker are fakes."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from deploy_parts import STREAM, rollout_actor

from penstock.deploy import assemble


def test_what_is_told_once_is_told_to_the_supervisor_and_not_to_the_exporter(monkeypatch: pytest.MonkeyPatch):
    actor, exported = rollout_actor(monkeypatch)
    (stats,) = exported
    assert stats()["doing"] == "ready"
    spans = [["generating", 1.0, 2.0]]
    told = {"phase": "generating", "silent": 0.0}
    actor._worker = SimpleNamespace(stats=lambda: told, spans=lambda: [spans.pop()] if spans else [])
    assert stats()["doing"] == "generating" and "spans" not in stats()
    assert actor.stats()["spans"] == [["generating", 1.0, 2.0]]
    assert actor.stats()["spans"] == []


class Playing:
    """A worker that is told things, and plays until it shall drain."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.drained = threading.Event()

    def request_drain(self) -> None:
        self.told.append("drain")
        self.drained.set()

    def set_max_lag(self, bound: int) -> None:
        self.told.append(bound)

    def run(self) -> None:
        assert self.drained.wait(10)

    def stats(self) -> dict[str, Any]:
        return {"phase": "ended"}

    def spans(self) -> list[Any]:
        return []


def test_a_worker_that_has_not_joined_yet_hears_later_what_it_was_told(monkeypatch: pytest.MonkeyPatch):
    joining, may_join, playing = threading.Event(), threading.Event(), Playing()

    def build_worker(*arguments: Any) -> Playing:
        assert STREAM in arguments, "it was opened when the actor started"
        joining.set()
        assert may_join.wait(10)
        return playing

    monkeypatch.setattr(assemble, "build_worker", build_worker)
    actor, _ = rollout_actor(monkeypatch)
    actor.set_max_lag(3)
    thread = threading.Thread(target=actor.run)
    thread.start()
    assert joining.wait(10)
    actor.set_max_lag(4)
    assert playing.told == []  # nobody waited
    may_join.set()
    while len(playing.told) < 2:
        thread.join(0.01)
        assert thread.is_alive()
    actor.request_drain()
    thread.join(10)
    assert not thread.is_alive() and playing.told == [3, 4, "drain"]
