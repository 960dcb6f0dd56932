"""Rollout workers that die while a run goes on. The actors are fakes."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import cast

import pytest
from deploy_parts import crew_of

from penstock.deploy import fleet
from penstock.deploy import silence as silence_module
from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.fleet import ActorLost
from penstock.deploy.journal import Journal
from penstock.deploy.mending import Mending
from penstock.deploy.parts import Parts
from penstock.deploy.runfile import RunFile
from penstock.deploy.scaling import Scaling
from penstock.rollout.leases import holder
from penstock.services.rundir import RunDir


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal(RunDir.create(tmp_path, "mended", ""), "mended", RecordingSection(), LimitsSection(), None)


def test_of_a_dead_worker_the_leases_of_that_life_are_ended_before_the_next_begins(journal, monkeypatch):
    monkeypatch.setattr(fleet.ray, "kill", lambda handle, no_restart: None)
    workers, scorers, lapsed = crew_of(2), crew_of(0), []
    run_file = SimpleNamespace(
        rollout=SimpleNamespace(max_restarts=1),
        learner=SimpleNamespace(max_restarts=1),
        deadlines=SimpleNamespace(blame=5.0),
    )
    parts = SimpleNamespace(learners=[SimpleNamespace(state="ended")], in_use=SimpleNamespace(look=lambda: None))
    mending = Mending(
        cast(Parts, parts),
        cast(RunFile, run_file),
        journal,
        Scaling(workers, journal),
        Scaling(scorers, journal),
        lapse=lambda member: lapsed.append(holder(member.name, member.restarts)),
    )
    mending.look(True, workers.members)
    assert lapsed == []
    dead = workers.members[1]
    dead.state, dead.cause = "dead", "rollout-1: killed by signal 9"
    mending.look(True, workers.members)
    assert lapsed == ["rollout-1.0"] and holder(dead.name, dead.restarts) == "rollout-1.1"
    dead.state, dead.cause = "dead", "rollout-1: killed by signal 9"
    with pytest.raises(ActorLost, match="was started again 1 times"):
        mending.look(True, workers.members)
    assert lapsed == ["rollout-1.0", "rollout-1.1"]


@pytest.fixture
def silence(journal, monkeypatch):
    """(mending, workers, scorers, names of those that were ended): all silent for 12 s, of which the first worker says
    where it stands."""
    ended: list[str] = []
    workers, scorers = crew_of(2), crew_of(1, "scorer")
    everybody = [*workers.members, *scorers.members]
    monkeypatch.setattr(
        fleet.ray, "kill", lambda handle, no_restart: ended.extend(m.name for m in everybody if m.handle is handle)
    )
    monkeypatch.setattr(silence_module, "where_they_stand", lambda actors: {"rollout-0": "it stands in step, a.py:7"})
    for member in everybody:
        member.stats, member.heard = {"silent": 12.0, "doing": "generating"}, time.monotonic()
    run_file = SimpleNamespace(
        rollout=SimpleNamespace(max_restarts=1),
        learner=SimpleNamespace(max_restarts=1),
        deadlines=SimpleNamespace(silence=10.0, blame=5.0),
    )
    parts = SimpleNamespace(
        members=everybody, learners=[SimpleNamespace(state="ended")], in_use=SimpleNamespace(look=lambda: None)
    )
    scaled = Scaling(workers, journal), Scaling(scorers, journal)
    return Mending(cast(Parts, parts), cast(RunFile, run_file), journal, *scaled), workers, scorers, ended


def test_who_falls_silent_is_ended_and_told_of_with_where_it_stands_and_its_last_lines(silence):
    mending, workers, _, ended = silence
    mending.silence()
    assert ended == ["rollout-0", "rollout-1", "scorer-0"]
    loop, process = workers.members
    assert loop.state == process.state == "dead" and not loop.mute and process.mute
    assert loop.cause.startswith(
        "rollout-0 has been silent for 12 s while generating (deadlines.silence is 10 s): its process answers, it "
        "stands in step, a.py:7; it was ended\n  last lines of none.log:"
    )
    assert "its process has not answered; it was ended" in process.cause


def test_the_death_of_a_scorer_that_ray_starts_again_is_told_once_with_its_cause(silence, journal):
    mending, _, scorers, _ = silence
    (scorer,) = scorers.members
    scorer.facts["pid"] = 1

    def told() -> list[tuple[str, str]]:
        events = RunDir.open(journal.run_dir).read_events()
        return [(e.kind, e.message.splitlines()[0]) for e in events if e.facts.get("name") == "scorer-0"]

    mending.silence()
    scorer.stats = {"process/pid": 2}
    mending.look(True, [])
    was_silent = (
        "died",
        "scorer-0 has been silent for 12 s while generating (deadlines.silence is 10 s): its process "
        "has not answered; it was ended",
    )
    back = ("restarted", "scorer-0 was started again by Ray")
    assert told() == [was_silent, back] and scorer.restarts == 1
    scorer.away, scorer.cause = True, "scorer-0 died: its process 2 was ended by SIGKILL (9), without a word"
    mending.look(True, [])
    assert len(told()) == 2, "it may only have been out of reach"
    scorer.stats = {"process/pid": 3}
    mending.look(True, [])
    killed = "scorer-0 died: its process 2 was ended by SIGKILL (9), without a word"
    assert told()[2:] == [("died", killed), back]
