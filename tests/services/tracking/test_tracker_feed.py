"""A tracker behind its queue: what it does must not reach the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from penstock.services.tracking.feed import MOST_FAILURES, Feed
from penstock.services.tracking.feeds import Feeds
from penstock.services.versions import Version

AT = Version(0, 1)


class Told:
    """A tracker that keeps what it is told, and does at every step what a test wants."""

    name = "a tracker"

    def __init__(self, at_step: Callable[[], None] = lambda: None, at_open: Callable[[], None] = lambda: None) -> None:
        self._at_step, self._at_open = at_step, at_open
        self.calls: list[tuple[object, ...]] = []

    def open(self) -> None:
        self._at_open()

    def begin(self, version: Version) -> None:
        self.calls.append(("begin", str(version)))

    def step(self, version, metrics, at) -> None:
        self.calls.append(("step", version.step, dict(metrics)))
        self._at_step()

    def event(self, version, kind, message, at) -> None:
        self.calls.append(("event", kind, message))

    def close(self, outcome: str) -> None:
        self.calls.append(("close", outcome))

    def abandon(self) -> None:
        self.calls.append(("abandon",))


def _fail() -> None:
    raise OSError("the server is away")


def test_a_tracker_is_told_everything_in_order() -> None:
    told = Told()
    feed = Feed(told)
    values = {"a/x": 1.0}
    feed.begin(Version(0, 0))
    feed.step(AT, values, 5.0)
    values["a/x"] = 2.0
    feed.event(AT, "died", "rollout-0", 6.0)
    feed.end("finished")
    feed.wait(5.0)
    assert told.calls == [
        ("begin", "0.0"),
        ("step", 1, {"a/x": 1.0}),
        ("event", "died", "rollout-0"),
        ("close", "finished"),
    ]
    assert feed.troubles() == []


def test_a_tracker_that_hangs_makes_nobody_wait_and_is_told_of_once() -> None:
    release = threading.Event()
    told = Told(at_step=lambda: release.wait(20))
    feed = Feed(told, most_waiting=3)
    began = time.monotonic()
    for step in range(100):
        feed.step(Version(0, step), {}, 0.0)
    feed.end("finished")
    feed.wait(0.05)
    assert time.monotonic() - began < 2.0
    assert [call[0] for call in told.calls] == ["step", "abandon"]
    slow, late = feed.troubles()
    assert slow.startswith("a tracker is too slow or hangs")
    assert late.startswith("a tracker did not finish in time")
    release.set()


def test_a_failure_is_told_once_and_several_in_a_row_end_it() -> None:
    told = Told(at_step=_fail)
    feed = Feed(told)
    for step in range(MOST_FAILURES + 5):
        feed.step(Version(0, step), {}, 0.0)
    feed.end("failed")
    feed.wait(5.0)
    assert [call[0] for call in told.calls] == ["step"] * MOST_FAILURES + ["close"]
    first, last = feed.troubles()
    assert first == "a tracker: OSError: the server is away"
    assert last.endswith("it is told no more")


def test_failures_with_successes_between_them_do_not_end_it() -> None:
    answers = iter([_fail, _fail, lambda: None] * 4)
    told = Told(at_step=lambda: next(answers)())  # noqa: PLW0108  the next at every step
    feed = Feed(told)
    for step in range(12):
        feed.step(Version(0, step), {}, 0.0)
    feed.end("finished")
    feed.wait(5.0)
    assert sum(call[0] == "step" for call in told.calls) == 12
    assert len(feed.troubles()) == 1


def test_a_tracker_that_cannot_be_opened_is_told_nothing_and_closed() -> None:
    told = Told(at_open=_fail)
    feed = Feed(told)
    feed.step(AT, {}, 0.0)
    feed.end("stopped")
    feed.wait(5.0)
    assert told.calls == [("close", "stopped")]
    (trouble,) = feed.troubles()
    assert trouble == "a tracker: OSError: the server is away; it is told no more"


def test_all_trackers_finish_beside_each_other() -> None:
    feeds = Feeds([Told(at_step=lambda: time.sleep(0.4)) for _ in range(4)])
    feeds.step(AT, {}, 0.0)
    began = time.monotonic()
    feeds.close("finished", deadline=5.0)
    assert time.monotonic() - began == pytest.approx(0.4, abs=0.35)
    assert feeds.troubles() == []
