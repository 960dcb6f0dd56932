"""Rollout workers that die while a run goes on. The actors are fakes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from deploy_parts import crew_of

from penstock.deploy import fleet
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
    run_file = SimpleNamespace(rollout=SimpleNamespace(max_restarts=1), learner=SimpleNamespace(max_restarts=1))
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
