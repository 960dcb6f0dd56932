"""Weights that are verified beside the generation."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import Any

import pytest

from penstock.rollout.ahead import Ahead
from penstock.services.versions import Version
from penstock.services.weights.files import WeightsMissing


class Receiver:
    """Gives a version when it is let, and tells where it was read and whether it was let go."""

    def __init__(self, missing: bool = False) -> None:
        self.let, self.missing = threading.Event(), missing
        self.readers: list[str] = []
        self.open = 0

    def manifest(self, version: Version) -> Any:
        assert self.let.wait(10)
        if self.missing:
            raise WeightsMissing(f"{version} is gone")
        return f"manifest of {version}"

    @contextmanager
    def fetch(self, version: Version) -> Any:
        self.readers.append(threading.current_thread().name)
        self.open += 1
        yield {"weight": version.step}
        self.open -= 1


def test_a_version_is_read_in_a_thread_of_its_own_and_held_until_it_was_taken():
    receiver: Any = Receiver()
    ahead = Ahead(receiver, Version(0, 3))
    assert not ahead.done
    receiver.let.set()
    with ahead.taken() as (manifest, tensors):
        assert ahead.done
        assert (manifest, tensors, receiver.open) == ("manifest of 0.3", {"weight": 3}, 1)
    assert receiver.readers == ["fetch-0.3"]
    assert receiver.open == 0


def test_what_could_not_be_read_is_said_to_whoever_takes_it():
    receiver: Any = Receiver(missing=True)
    receiver.let.set()
    ahead = Ahead(receiver, Version(0, 3))
    with pytest.raises(WeightsMissing, match=r"0\.3 is gone"), ahead.taken():
        raise AssertionError("it is not there")
    assert ahead.done


def test_a_version_that_nobody_wants_any_more_is_let_go():
    receiver: Any = Receiver()
    receiver.let.set()
    ahead = Ahead(receiver, Version(0, 3))
    ahead._found.result(10)
    ahead.drop()
    assert receiver.open == 0
