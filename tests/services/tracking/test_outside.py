"""A tracker in a process of its own."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path

import pytest

from penstock.services.contracts import DeadlinePassed
from penstock.services.tracking import outside
from penstock.services.tracking.feed import Feed
from penstock.services.tracking.outside import Outside, TrackerFailed
from penstock.services.versions import Version

AT = Version(1, 12)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes an `Outside` with a client of `clients.py`, already open."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    made = []

    def make(client: str) -> Outside:
        tracker = Outside("T", f"clients:{client}", tmp_path / "log", {"file": str(tmp_path / "told"), "project": "p"})
        made.append(tracker)
        tracker.open()
        return tracker

    yield make
    for tracker in made:
        tracker.abandon()
        process = _process(tracker)
        process.wait(10)
        process.stdin.close()


def _told(tmp_path) -> list:
    return [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]


def _process(tracker: Outside):
    assert tracker._process is not None
    return tracker._process


def test_the_client_is_told_everything_and_its_words_are_in_the_log(make, tmp_path) -> None:
    tracker = make("Writing")
    tracker.begin(AT)
    tracker.step(AT, {"a/x": 0.1, "a/y": math.inf, "a/z": math.nan}, 5.0)
    tracker.event(AT, "died", "why\nand how", 6.0)
    tracker.close("finished")
    (_, settings), begin, (_, step), event, close = _told(tmp_path)
    assert settings == {"project": "p"}
    assert begin == ["begin", {"lineage": 1, "step": 12}]
    assert (step["lineage"], step["step"], step["at"]) == (1, 12, 5.0)
    assert step["metrics"]["a/x"] == 0.1
    assert step["metrics"]["a/y"] == math.inf
    assert math.isnan(step["metrics"]["a/z"])
    assert event == ["event", {"step": 12, "kind": "died", "message": "why\nand how", "at": 6.0}]
    assert close == ["close", {"outcome": "finished"}]
    assert _process(tracker).poll() == 0 or _process(tracker).returncode == -signal.SIGKILL
    assert "a word for the log" in (tmp_path / "log").read_text()


def test_what_a_client_raises_is_said_and_the_next_call_goes_on(make, tmp_path) -> None:
    tracker = make("Failing")
    with pytest.raises(TrackerFailed, match="ConnectionError: no route to the server"):
        tracker.step(AT, {}, 0.0)
    tracker.event(AT, "kind", "message", 0.0)
    assert [what for what, _ in _told(tmp_path)] == ["open", "event"]


def test_a_client_that_hangs_is_killed_when_its_time_is_over(make, monkeypatch) -> None:
    monkeypatch.setattr(outside, "CALL_SECONDS", 0.3)
    tracker = make("Hanging")
    began = time.monotonic()
    with pytest.raises(DeadlinePassed, match="for `step`; it was ended"):
        tracker.step(AT, {}, 0.0)
    assert time.monotonic() - began < 5.0
    assert _process(tracker).returncode == -signal.SIGKILL
    with pytest.raises(TrackerFailed, match="has ended"):
        tracker.step(AT, {}, 0.0)


def test_a_client_that_ends_its_process_is_said_to_have(make) -> None:
    tracker = make("Dying")
    with pytest.raises(TrackerFailed, match="its process has ended"):
        tracker.step(AT, {}, 0.0)
    tracker.close("finished")


def test_a_client_that_cannot_be_made_says_why(make) -> None:
    with pytest.raises(TrackerFailed, match="its process has ended"):
        make("Missing")


def test_the_process_ends_when_the_run_is_gone_without_a_word(make, tmp_path) -> None:
    tracker = make("Writing")
    stdin = _process(tracker).stdin
    assert stdin is not None
    stdin.close()
    assert _process(tracker).wait(10) == 0
    assert _told(tmp_path)[-1] == ["close", {"outcome": "died"}]


def test_ctrl_c_in_the_terminal_does_not_reach_it(make) -> None:
    tracker = make("Writing")
    assert os.getsid(_process(tracker).pid) != os.getsid(0)


def test_behind_its_queue_a_hanging_client_is_a_warning_and_no_wait(make, monkeypatch) -> None:
    monkeypatch.setattr(outside, "CALL_SECONDS", 0.3)
    tracker = make("Hanging")
    monkeypatch.setattr(tracker, "open", lambda: None)
    feed = Feed(tracker)
    feed.step(AT, {}, 0.0)
    feed.end("finished")
    feed.wait(5.0)
    assert feed.troubles() == [f"T: DeadlinePassed: waited 0 s for `step`; it was ended, see {tracker._log}"]


def test_a_client_that_has_not_finished_when_the_run_ends_is_killed(make, monkeypatch) -> None:
    tracker = make("Hanging")
    monkeypatch.setattr(tracker, "open", lambda: None)
    feed = Feed(tracker)
    feed.step(AT, {}, 0.0)
    feed.end("finished")
    feed.wait(0.3)
    assert _process(tracker).wait(5) == -signal.SIGKILL
    assert feed.troubles()[0].startswith("T did not finish in time")
