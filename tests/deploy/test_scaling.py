"""Workers join and leave: who starts, who goes first, what is refused. The actors are fakes."""

from __future__ import annotations

import pytest
from deploy_parts import Parts, names

from penstock.deploy import fleet
from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.fleet import Member
from penstock.deploy.journal import Journal
from penstock.deploy.scaling import Scaling
from penstock.services.control import Refused
from penstock.services.rundir import RunDir


@pytest.fixture(autouse=True)
def killed(monkeypatch) -> list:
    gone: list = []
    monkeypatch.setattr(fleet.ray, "kill", lambda handle, no_restart: gone.append(handle))
    return gone


@pytest.fixture
def directory(tmp_path) -> RunDir:
    return RunDir.create(tmp_path, "scaled", "name: scaled\n")


@pytest.fixture
def journal(directory) -> Journal:
    return Journal(directory, "scaled", RecordingSection(), LimitsSection(), None)


def drained(worker: Member) -> bool:
    return bool(worker.handle.request_drain.calls)


def test_more_workers_start_at_once_and_are_told_of(directory, journal):
    parts = Parts(1)
    assert "1 rollout workers were wanted, now 3" in Scaling(parts, journal).ask(3)
    assert names(parts.workers) == ["rollout-0", "rollout-1", "rollout-2"]
    assert [worker.state for worker in parts.workers] == ["running", "starting", "starting"]
    assert [event.facts["name"] for event in directory.read_events()] == ["rollout-1", "rollout-2"]


def test_the_youngest_leave_first_are_drained_and_forgotten_once_they_have_ended(directory, journal, killed):
    parts = Parts(3)
    scaling = Scaling(parts, journal)
    scaling.ask(1)
    assert [drained(worker) for worker in parts.workers] == [False, True, True]
    assert names(scaling.staying) == ["rollout-0"]
    scaling.look()
    assert len(parts.workers) == 3, "they are still handing over what they hold"
    parts.workers[2].state = "ended"
    scaling.look()
    parts.workers[1].state, parts.workers[1].cause = "dead", "killed by signal 9"
    scaling.look()
    assert names(parts.workers) == ["rollout-0"]
    assert len(killed) == 2, "their processes are ended, too"
    assert names(parts.left) == ["rollout-2", "rollout-1"]
    events = [(event.kind, event.facts["name"]) for event in directory.read_events()]
    assert events == [("leaving", "rollout-2"), ("leaving", "rollout-1"), ("left", "rollout-2"), ("left", "rollout-1")]
    assert directory.read_events()[-1].facts["cause"] == "killed by signal 9"


def test_one_that_is_still_starting_goes_before_one_that_generates_and_at_once(journal, killed):
    parts = Parts(1)
    scaling = Scaling(parts, journal)
    scaling.ask(2)
    parts.workers.reverse()
    scaling.ask(1)
    assert names(parts.workers) == ["rollout-0"]
    assert len(killed) > 0
    assert not drained(parts.workers[0])


def test_a_worker_that_died_still_counts_as_wanted(journal):
    parts = Parts(2)
    scaling = Scaling(parts, journal)
    parts.workers[0].state = "dead"
    scaling.look()
    assert len(parts.workers) == 2, "whoever mends workers starts it again; nobody is added beside it"


def test_a_worker_that_joined_and_is_given_up_is_forgotten_and_no_other_started_in_its_place(directory, journal):
    parts = Parts(1)
    scaling = Scaling(parts, journal)
    scaling.ask(2)
    assert [worker.added for worker in parts.workers] == [False, True]
    parts.workers[1].state, parts.workers[1].cause = "dead", "out of memory"
    scaling.give_up(parts.workers[1])
    scaling.look()
    assert names(parts.workers) == ["rollout-0"] and scaling.wanted == 1
    warning = next(event for event in directory.read_events() if event.kind == "warning")
    assert warning.message == "rollout-1 is given up; 1 rollout workers are wanted now: out of memory"


def test_scaling_to_nothing_and_back_gives_new_names(journal):
    parts = Parts(2)
    scaling = Scaling(parts, journal)
    scaling.ask(0)
    for worker in parts.workers:
        worker.state = "ended"
    scaling.look()
    assert parts.workers == []
    scaling.ask(2)
    assert names(parts.workers) == ["rollout-2", "rollout-3"]


def test_more_than_the_cluster_has_room_for_is_refused_and_changes_nothing(journal):
    parts = Parts(2)
    scaling = Scaling(parts, journal)
    with pytest.raises(Refused, match="the cluster has 4"):
        scaling.ask(5)
    with pytest.raises(Refused, match=r"-1 rollout workers cannot be had; allowed: 0 to"):
        scaling.ask(-1)
    assert scaling.wanted == 2 and len(parts.workers) == 2


def test_one_worker_can_be_sent_away_by_name(journal):
    parts = Parts(3)
    scaling = Scaling(parts, journal)
    scaling.remove("rollout-1")
    assert scaling.wanted == 2
    assert names(scaling.staying) == ["rollout-0", "rollout-2"]
    with pytest.raises(Refused, match=r"'rollout-1' that could leave; there are: rollout-0, rollout-2"):
        scaling.remove("rollout-1")
