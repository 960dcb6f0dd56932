"""Workers and scorers join and leave: who starts, who goes first, what is refused. The actors are fakes."""

from __future__ import annotations

import pytest
from deploy_parts import crew_of, names

from penstock.deploy import fleet
from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.crews import Crew, ScorerSet
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
    crew = crew_of(1)
    assert "rollout workers wanted: 1 before, now 3" in Scaling(crew, journal).ask(3)
    assert names(crew.members) == ["rollout-0", "rollout-1", "rollout-2"]
    assert [worker.state for worker in crew.members] == ["running", "starting", "starting"]
    assert [event.facts["name"] for event in directory.read_events()] == ["rollout-1", "rollout-2"]


def test_the_youngest_leave_first_are_drained_and_forgotten_once_they_have_ended(directory, journal, killed):
    crew, lapsed = crew_of(3), []
    scaling = Scaling(crew, journal, lapsed.append)
    scaling.ask(1)
    assert [drained(worker) for worker in crew.members] == [False, True, True]
    assert names(scaling.staying) == ["rollout-0"]
    scaling.look()
    assert len(crew.members) == 3, "they are still handing over what they hold"
    crew.members[2].state = "ended"
    scaling.look()
    crew.members[1].state, crew.members[1].cause = "dead", "killed by signal 9"
    scaling.look()
    assert names(crew.members) == ["rollout-0"]
    assert len(killed) == 2, "their processes are ended, too"
    assert names(crew.left) == ["rollout-2", "rollout-1"]
    assert names(lapsed) == ["rollout-1"], "only one that died has not handed everything back"
    events = [(event.kind, event.facts["name"]) for event in directory.read_events()]
    assert events == [("leaving", "rollout-2"), ("leaving", "rollout-1"), ("left", "rollout-2"), ("left", "rollout-1")]
    assert directory.read_events()[-1].facts["cause"] == "killed by signal 9"


def test_one_that_is_still_starting_goes_before_one_that_generates_and_at_once(journal, killed):
    crew = crew_of(1)
    scaling = Scaling(crew, journal)
    scaling.ask(2)
    crew.members.reverse()
    scaling.ask(1)
    assert names(crew.members) == ["rollout-0"]
    assert len(killed) > 0
    assert not drained(crew.members[0])


def test_a_worker_that_died_still_counts_as_wanted(journal):
    crew = crew_of(2)
    scaling = Scaling(crew, journal)
    crew.members[0].state = "dead"
    scaling.look()
    assert len(crew.members) == 2, "whoever mends workers starts it again; nobody is added beside it"


def test_a_worker_that_joined_and_is_given_up_is_forgotten_and_no_other_started_in_its_place(directory, journal):
    crew = crew_of(1)
    scaling = Scaling(crew, journal)
    scaling.ask(2)
    assert [worker.added for worker in crew.members] == [False, True]
    crew.members[1].state, crew.members[1].cause = "dead", "out of memory"
    scaling.give_up(crew.members[1])
    scaling.look()
    assert names(crew.members) == ["rollout-0"] and scaling.wanted == 1
    warning = next(event for event in directory.read_events() if event.kind == "warning")
    assert warning.message == "rollout-1 is given up; wanted now: 1 rollout worker: out of memory"


def test_scaling_to_nothing_and_back_gives_new_names(journal):
    crew = crew_of(2)
    scaling = Scaling(crew, journal)
    scaling.ask(0)
    for worker in crew.members:
        worker.state = "ended"
    scaling.look()
    assert crew.members == []
    scaling.ask(2)
    assert names(crew.members) == ["rollout-2", "rollout-3"]


def test_more_than_the_cluster_has_room_for_is_refused_and_changes_nothing(journal):
    crew = crew_of(2)
    scaling = Scaling(crew, journal)
    with pytest.raises(Refused, match="the cluster has 4"):
        scaling.ask(5)
    with pytest.raises(Refused, match=r"-1 rollout workers cannot be had; allowed: 0 to"):
        scaling.ask(-1)
    with pytest.raises(Refused, match="the cluster has 4"):
        scaling.ask(10**6)  # the bound that is met first, and not the program's own
    assert scaling.wanted == 2 and len(crew.members) == 2


def test_the_number_that_is_wanted_already_is_said_to_be(journal):
    scaling = Scaling(crew_of(2), journal)
    assert scaling.ask(2) == "2 rollout workers wanted already"
    assert scaling.asked == 1, "whoever asks for it means it: the autoscaler leaves it alone"


def test_one_worker_can_be_sent_away_by_name(journal):
    crew = crew_of(3)
    scaling = Scaling(crew, journal)
    scaling.remove("rollout-1")
    assert scaling.wanted == 2
    assert names(scaling.staying) == ["rollout-0", "rollout-2"]
    assert scaling.has("rollout-2") and not scaling.has("rollout-1")


def scorers_of(workers: Crew, count: int) -> tuple[Crew, ScorerSet]:
    crew = crew_of(count, "scorer")
    in_use = ScorerSet(crew, workers)
    crew.released = in_use.released
    in_use.look()
    return crew, in_use


def confirm(workers: Crew, in_use: ScorerSet, **in_hand: int) -> None:
    """What every worker says once it has got the newest set."""
    for worker in workers.members:
        worker.stats = {"scorers": {"set": in_use.number, "in_hand": in_hand}}


def told(worker: Member) -> list[tuple[int, list[str]]]:
    return [(number, list(handles)) for number, handles in worker.handle.use_scorers.calls]


def test_workers_are_told_of_a_scorer_once_it_answers_and_of_one_that_leaves_at_once(journal):
    workers = crew_of(2)
    crew, in_use = scorers_of(workers, 1)
    scaling = Scaling(crew, journal)
    scaling.ask(2)
    in_use.look()
    assert told(workers.members[0]) == [(1, ["scorer-0"])], "one that starts is no use yet"
    crew.members[1].state = "running"
    in_use.look()
    in_use.look()
    scaling.remove("scorer-0")
    in_use.look()
    for worker in workers.members:
        assert told(worker) == [(1, ["scorer-0"]), (2, ["scorer-0", "scorer-1"]), (3, ["scorer-1"])]


def test_a_leaving_scorer_is_ended_when_no_worker_waits_for_it_any_more(directory, journal, killed):
    workers = crew_of(2)
    crew, in_use = scorers_of(workers, 2)
    scaling = Scaling(crew, journal)
    confirm(workers, in_use)
    scaling.ask(1)
    scaling.look()
    assert not killed, "the workers have not been told, and may be giving it a group at this moment"
    in_use.look()
    scaling.look()
    assert not killed, "they have not confirmed it"
    confirm(workers, in_use, **{"scorer-1": 2})
    scaling.look()
    assert not killed, "they wait for two groups"
    confirm(workers, in_use, **{"scorer-0": 5})
    workers.members[1].stats["scorers"]["in_hand"] = {"scorer-1": 1}
    scaling.look()
    assert not killed, "one of them waits for one"
    confirm(workers, in_use)
    scaling.look()
    assert len(killed) > 0
    assert names(crew.members) == ["scorer-0"] and names(crew.left) == ["scorer-1"]
    assert [event.kind for event in directory.read_events()] == ["leaving", "left"]


def test_a_scorer_that_ray_starts_again_is_left_out_until_it_answers_unless_there_is_no_other(journal):
    workers = crew_of(1)
    crew, in_use = scorers_of(workers, 2)
    crew.members[0].away = True
    in_use.look()
    crew.members[1].away = True
    in_use.look()
    crew.members[0].away = False
    in_use.look()
    both_of_them = ["scorer-0", "scorer-1"]
    assert told(workers.members[0]) == [(1, both_of_them), (2, ["scorer-1"]), (3, both_of_them), (4, ["scorer-0"])]


def test_the_last_scorer_stays(journal):
    crew, _ = scorers_of(crew_of(1), 1)
    scaling = Scaling(crew, journal)
    with pytest.raises(Refused, match=r"0 scorers cannot be had: nobody would judge; allowed: 1 to"):
        scaling.ask(0)
    with pytest.raises(Refused, match=r"scorer-0 must stay: nobody would judge; let another join first"):
        scaling.remove("scorer-0")
    assert not scaling.may_give_up(crew.members[0])
    scaling.ask(2)
    crew.members[1].state = "running"
    assert scaling.may_give_up(crew.members[1]) and not scaling.may_give_up(crew.members[0])
    scaling.remove("scorer-0")
    assert not scaling.may_give_up(crew.members[1]), "it is the last one now"
    assert scaling.wanted == 1
