"""The desk of a run that is started again after its driver was killed: its name may be taken still. Ray is a fake."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
import ray.exceptions

from penstock.deploy import desk
from penstock.deploy.desk import Card
from penstock.deploy.leftovers import Doubled

OURS = Card("carry-1-0a1b2c3d", "/runs/carry-1", "lab-3", 4711)


class Head:
    """Refuses the name `taken` times; whoever asks the desk that has it is answered with `there`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, taken: int, there: Card | Exception) -> None:
        self.taken, self.there = taken, there
        options = SimpleNamespace(remote=self._open)
        monkeypatch.setattr(desk.ray, "remote", lambda _: SimpleNamespace(options=lambda **_: options))
        card = SimpleNamespace(remote=lambda: None)
        monkeypatch.setattr(desk.ray, "get_actor", lambda *_, **__: SimpleNamespace(card=card))
        monkeypatch.setattr(desk.ray, "get", self._answer)
        monkeypatch.setattr(desk, "_PAUSE", 0.0)

    def _open(self, _: bytes) -> str:
        self.taken -= 1
        if self.taken >= 0:
            raise ValueError("the name is taken")
        return "a handle"

    def _answer(self, _: object, timeout: float) -> bytes:
        if isinstance(self.there, Exception):
            raise self.there
        return msgspec.json.encode(self.there)


@pytest.mark.parametrize("there", [OURS, ray.exceptions.ActorUnavailableError("gone", None)])
def test_what_a_killed_driver_has_left_is_waited_out(monkeypatch: pytest.MonkeyPatch, there):
    """Its own desk, and one on a node that is gone and does not answer."""
    head = Head(monkeypatch, 3, there)
    assert desk._opened(OURS, {}) == "a handle"
    assert head.taken == -1


def test_a_copy_of_the_directory_that_goes_on_is_told_at_once(monkeypatch: pytest.MonkeyPatch):
    head = Head(monkeypatch, 99, msgspec.structs.replace(OURS, run_dir="/elsewhere/carry-1"))
    with pytest.raises(Doubled, match="is going on on this cluster already"):
        desk._opened(OURS, {})
    assert head.taken == 98


def test_the_wait_has_an_end(monkeypatch: pytest.MonkeyPatch):
    Head(monkeypatch, 10**9, OURS)
    monkeypatch.setattr(desk, "NOTICE", 0.05)
    with pytest.raises(Doubled):
        desk._opened(OURS, {})
