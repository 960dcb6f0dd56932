"""Signals to real processes, how a recovery is timed, and the line that is printed."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from chaos import moments, strikes
from chaos.__main__ import options, report
from chaos.play import Log
from chaos.strikes import Strike
from chaos.targets import TARGETS, Victim
from chaos.violations import Violation


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def strike(process, sent="kill", held=0.0, target="worker") -> Strike:
    return Strike(Victim(target, "rollout-0", process.pid), sent, "any", held)


def test_a_kill_kills_and_who_is_gone_already_is_no_strike(sleeper):
    assert strike(sleeper).send()
    assert sleeper.wait(10) == -9
    assert not strike(sleeper).send()


def test_a_stop_ends_when_its_time_is_over_and_not_before(sleeper):
    stopped = strike(sleeper, "stop", held=0.4)
    assert stopped.send()
    time.sleep(0.1)
    stopped.let_go()
    assert psutil.Process(sleeper.pid).status() == psutil.STATUS_STOPPED
    time.sleep(0.4)
    stopped.let_go()
    time.sleep(0.1)
    assert psutil.Process(sleeper.pid).status() != psutil.STATUS_STOPPED and not stopped.stopped


def test_it_is_got_over_when_the_victim_is_back_and_a_step_was_published_after_that(sleeper, monkeypatch):
    there = []
    monkeypatch.setattr(strikes, "_back", lambda *_: bool(there))
    run = SimpleNamespace(phase="starting")
    struck = strike(sleeper)
    struck.send()
    struck.look(run, steps=5)
    run.phase = "training"
    struck.look(run, steps=6)  # a step of those that are left
    assert not struck.back_at
    there.append(True)
    struck.look(run, steps=7)
    struck.look(run, steps=7)
    assert struck.back_at and not struck.recovered_at
    struck.look(run, steps=8)
    assert 0 < struck.seconds < 10


def test_the_line_counts_by_target_moment_and_signal():
    log = Log(say=lambda _: None)
    log.strikes = [
        Strike(Victim("store", "store", 1), "kill", "checkpoint", at=100.0, recovered_at=102.0),
        Strike(Victim("worker", "rollout-1", 2), "stop", "swap", held=1.0, at=200.0, recovered_at=203.0),
        Strike(Victim("worker", "rollout-0", 3), "kill", "any", at=300.0),
    ]
    log.violated(Violation("stuck", "rollout-0 did not come back"))
    log.leased_again, log.delivered_again = 3, 4
    told = report(options(["--kills", "3"]), log)
    assert told["kills"] == 3 and told["recoveries"] == 2
    assert told["by_target"] == {"store": 1, "worker": 2}
    assert told["by_moment"] == {"checkpoint": 1, "swap": 1, "any": 1}
    assert told["by_signal"] == {"SIGKILL": 2, "SIGSTOP": 1}
    assert told["seconds_to_recover"] == {"median": 2.5, "max": 3.0}
    assert told["groups_redelivered"] == 7
    assert told["violations"] == 1 and told["violated"] == ["stuck: rollout-0 did not come back"]


def test_every_target_can_be_struck_at_any_time_and_all_but_the_page_inside_of_something():
    inside = {target: set(moments.for_target(target)) - {moments.ANY} for target in TARGETS}
    assert all(moments.ANY in moments.for_target(target) for target in TARGETS)
    assert inside.pop("page") == set() and all(inside.values())
    assert {"swap", "join", "drain"} <= inside["worker"] and {"checkpoint", "commit"} <= inside["learner"]
    assert "scoring" in inside["scorer"] and {"checkpoint", "commit", "swap"} <= inside["store"] & inside["driver"]


def test_a_misspelt_target_is_refused():
    with pytest.raises(SystemExit):
        options(["--targets", "wroker"])
