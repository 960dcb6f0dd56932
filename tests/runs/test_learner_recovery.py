"""A learner of two ranks loses one of them, again and again, while a drill goes on, and is replaced inside of it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from benchmarks.drills import RECIPE, Onlooker, inputs_in, played
from penstock.services.control import Pause, Resume, SetCoefficient, Stop

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]

OVERRIDES = (
    "name=drill-recovered",
    "learner.ranks=2",
    "limits.steps=100000",
    "checkpoints.every=4",
    "deadlines.silence=10",
    "store.deadline=8",
    "staleness.max_lag=4",
)


def recovered(onlooker: Onlooker, times: int) -> None:
    """Wait until the learner has begun again so often."""
    onlooker.wait(f"the learner goes on for the {times}. time", lambda: len(began_again(onlooker)) >= times, 120)


def began_again(onlooker: Onlooker) -> list[float]:
    """Seconds that each recovery took."""
    return [
        event.facts["seconds"]
        for event in onlooker.directory.read_events()
        if event.kind == "restarted" and event.facts["name"] == "learner" and "seconds" in event.facts
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Killed in the middle, killed while it is paused, frozen."""

    def play(onlooker: Onlooker) -> None:
        send = onlooker.control.send
        onlooker.wait("there is a checkpoint", lambda: onlooker.step >= 5)
        send(SetCoefficient("learning_rate", 3e-6), "story")
        os.kill(onlooker.pid_of("learner-1"), signal.SIGKILL)
        recovered(onlooker, 1)
        onlooker.wait("a new checkpoint", lambda: onlooker.step >= 9)

        send(Pause(), "story")
        onlooker.wait("it stands still", lambda: "paused" in {w.state for w in onlooker.view.workers})
        os.kill(onlooker.pid_of("learner-0"), signal.SIGKILL)
        recovered(onlooker, 2)
        time.sleep(1.5)  # the view is renewed once a second
        stands = onlooker.step
        time.sleep(2.0)
        assert onlooker.step == stands and onlooker.view.controls.paused_by == "story"
        send(Resume(), "story")
        onlooker.wait("it goes on", lambda: onlooker.step >= stands + 5)

        os.kill(onlooker.pid_of("learner-1"), signal.SIGSTOP)
        recovered(onlooker, 3)
        onlooker.wait("it goes on", lambda: onlooker.step >= stands + 10)
        send(Stop("the story is over"), "story")

    folder: Path = tmp_path_factory.mktemp("recovery")
    return played(RECIPE / "drill.yaml", [*inputs_in(folder), *OVERRIDES], play)


def test_the_run_ends_as_if_nothing_had_happened_in_a_new_lineage_for_every_recovery(run):
    assert run.summary["outcome"] == "finished" and run.summary["why"] == "stopped: the story is over"
    assert run.summary["version"].startswith("3.")
    assert run.summary["restarts"] == {"learner-0": 3, "learner-1": 3}


def test_every_death_has_its_cause_among_the_events(run):
    causes = [event.message for event in run.events if event.kind == "died" and "learner" in event.facts["name"]]
    for rank in ("learner-0", "learner-1"):
        killed = re.compile(rf"{rank} died: its process \d+ was ended by SIGKILL \(9\), without a word")
        assert any(killed.match(cause) for cause in causes), causes
    assert any("learner-1 has been silent for" in cause and "(deadlines.silence is 10 s)" in cause for cause in causes)


def test_the_ledger_is_balanced_and_what_was_committed_is_applied_once(run):
    ledger = run.summary["ledger"]
    assert ledger["balanced"] and set(ledger["dropped"]) <= {"run_ended", "stale"}
    assert ledger["by_state"]["committed"] == 8 * run.summary["steps"]


def test_the_steps_of_every_lineage_follow_each_other_and_a_new_one_begins_at_a_checkpoint(run):
    steps = lines_of_steps(run.dir)
    for lineage in range(4):
        found = [line["step"] for line in steps if line["lineage"] == lineage]
        assert found == list(range(found[0], found[0] + len(found)))
        assert (found[0] - 1) % 4 == 0
    assert {line["lineage"] for line in steps} == {0, 1, 2, 3}


def test_what_was_turned_by_hand_stays_turned(run):
    assert {line["actor/lr"] for line in lines_of_steps(run.dir) if line["lineage"] > 0} == {3e-6}


def lines_of_steps(folder: Path) -> list[dict[str, float]]:
    """What metrics.jsonl has of train steps, those of lost futures too."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "learner/tokens" in line]


def test_a_rank_that_comes_to_no_collective_is_named_by_the_one_that_waited_for_it(tmp_path):
    """Long before the driver would call it silent."""
    told: list[float] = []

    def play(onlooker: Onlooker) -> None:
        onlooker.wait("there is a checkpoint", lambda: onlooker.step >= 5)
        began = time.monotonic()
        os.kill(onlooker.pid_of("learner-1"), signal.SIGSTOP)
        onlooker.wait("it is told of", lambda: "learner-0" in onlooker.names("died"), 60)
        told.append(time.monotonic() - began)
        recovered(onlooker, 1)
        stands = onlooker.step
        onlooker.wait("it goes on", lambda: onlooker.step >= stands + 5)
        onlooker.control.send(Stop("the story is over"), "story")

    patient = ("deadlines.silence=200", "learner.collective_timeout=10", "store.deadline=30", "name=drill-collective")
    run = played(RECIPE / "drill.yaml", [*inputs_in(tmp_path), *OVERRIDES, *patient], play)
    assert 9 < told[0] < 40
    (cause,) = [e.message for e in run.events if e.kind == "died" and e.facts["name"] == "learner-0"]
    assert "collective_timeout" in cause
    assert run.summary["restarts"] == {"learner-0": 1, "learner-1": 1} and run.summary["ledger"]["balanced"]
