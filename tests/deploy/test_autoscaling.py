"""What the autoscaler is told of a run, and how its decisions become commands. Actors and clock are the test's."""

from __future__ import annotations

import pytest
from deploy_parts import crew_of

from penstock.deploy import fleet
from penstock.deploy.autoscaling import Autoscaling, Looks
from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.journal import Journal
from penstock.deploy.scaling import Scaling
from penstock.rollout.config import AutoscaleSection
from penstock.services.contracts import PenstockError
from penstock.services.control import Answer, Asked
from penstock.services.rundir import RunDir

RULES = AutoscaleSection(min=1, max=4, up_after=20, down_after=40, again=200, hold=100)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def no_processes(monkeypatch) -> None:
    monkeypatch.setattr(fleet.ray, "kill", lambda handle, no_restart: None)


def worker_says(worker, **stats: float) -> None:
    worker.stats = {f"rollout/{name}": value for name, value in stats.items()}
    worker.delivered = bool(stats.get("groups_put"))


def test_a_finished_steps_own_word_takes_the_place_of_what_was_seen_of_its_wait():
    clock, crew = Clock(), crew_of(1)
    worker_says(crew.members[0], groups_put=1.0)
    looks = Looks(8, 60, clock)
    for _ in range(10):
        clock.now += 0.2
        looks.tick(waiting=True)
    seen = looks.load(crew.members, 1, 4, 2)
    assert (seen.seconds, seen.waited) == (pytest.approx(2.0), pytest.approx(2.0))
    assert (seen.queue, seen.places, seen.steps) == (0.5, 24, 0)
    looks.stepped({"time/wait": 1.9})
    clock.now += 1.0
    looks.tick(waiting=False)
    seen = looks.load(crew.members, 1, 4, 2)
    assert (seen.waited, seen.steps) == (pytest.approx(-0.1), 1)


def test_a_worker_counts_once_it_has_delivered_or_has_been_there_for_a_while():
    clock, crew = Clock(), crew_of(3)
    looks = Looks(8, 60, clock)
    worker_says(crew.members[0], groups_put=3.0)
    crew.members[2].state = "starting"
    seen = looks.load(crew.members, 3, 0, 2)
    assert (seen.workers, seen.coming) == (1, 2)
    clock.now += 61
    seen = looks.load(crew.members, 3, 0, 2)
    assert (seen.workers, seen.coming) == (2, 1)
    crew.members[1].leaving = True
    assert looks.load(crew.members, 2, 0, 2).workers == 1


def test_idle_is_the_share_of_the_time_in_which_the_workers_had_nothing_to_do():
    clock, crew = Clock(), crew_of(2)
    looks = Looks(8, 60, clock)
    for worker, waited in zip(crew.members, (100.0, 7.0), strict=True):
        worker_says(worker, groups_put=1.0, waiting_seconds=waited)
    assert looks.load(crew.members, 2, 0, 2).idle == 0.0
    clock.now += 10
    for worker, waited in zip(crew.members, (105.0, 8.0), strict=True):
        worker_says(worker, groups_put=1.0, waiting_seconds=waited)
    assert looks.load(crew.members, 2, 0, 2).idle == pytest.approx((5 + 1) / 20)
    clock.now += 10
    for worker, waited in zip(crew.members, (1.0, 12.0), strict=True):
        worker_says(worker, groups_put=1.0, waiting_seconds=waited)
    assert looks.load(crew.members, 2, 0, 2).idle == pytest.approx(4 / 20), "the first was started again"


class Run:
    """A learner that waits for half of its time, whatever happens."""

    def __init__(self, tmp_path, rules: AutoscaleSection = RULES, room: int = 4) -> None:
        self.directory = RunDir.create(tmp_path, "auto", "name: auto\n")
        self.journal = Journal(self.directory, "auto", RecordingSection(), LimitsSection(), None)
        self.crew = crew_of(1)
        self.scaling = Scaling(self.crew, self.journal)
        self.clock, self.room = Clock(), room
        self.asked: list[Asked] = []
        self.scaler = Autoscaling(rules, 8, self.scaling, self.ask, self.journal, self.clock)

    def ask(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if asked.command.count > self.room:
            return Answer(False, "no room")
        try:
            return Answer(True, self.scaling.ask(asked.command.count))
        except PenstockError as error:
            return Answer(False, str(error))

    def go(self, seconds: int, active: bool = True) -> list[int]:
        """What was asked for meanwhile; whoever joins delivers at once."""
        before = len(self.asked)
        for _ in range(seconds):
            for worker in self.crew.members:
                if worker.state == "starting":
                    worker.state = "running"
                worker_says(worker, groups_put=1.0)
            for waiting in (True, False):
                self.clock.now += 0.5
                self.scaler.looks.tick(waiting)
            self.scaler.looks.stepped({"time/wait": 0.5})
            self.scaler.look(active, stored=2, max_lag=2)
        return [asked.command.count for asked in self.asked[before:]]

    def said(self) -> list[str]:
        return [event.message for event in self.directory.read_events() if event.kind == "autoscaling"]


def test_what_it_decides_it_asks_for_in_its_own_name_and_says_why(tmp_path):
    run = Run(tmp_path)
    assert run.go(25) == [2]
    assert (run.asked[0].by, run.asked[0].command.role) == ("autoscaler", "rollout")
    assert run.scaling.wanted == 2
    assert run.said()[0].startswith("with 1 workers the learner waited 50% of 20 s")


def test_whoever_scales_by_hand_is_left_alone_for_a_while(tmp_path):
    run = Run(tmp_path)
    run.scaling.ask(3)
    assert run.go(99) == []
    assert run.said() == [
        "3 rollout workers are wanted by somebody else; the autoscaler leaves them for 100 s (rollout.autoscale.hold)"
    ]
    assert run.go(40) == [4]
    assert run.said()[1] == "the autoscaler goes on"
    run.scaling.ask(0)
    assert run.go(102) == [1], "afterwards it is brought back to the least"


def test_a_number_asked_for_by_hand_may_be_left_for_good(tmp_path):
    run = Run(tmp_path, RULES.model_copy(update={"hold": None}))
    run.scaling.ask(1)
    assert run.go(600) == []
    assert "for the rest of the run" in run.said()[0]


def test_while_the_run_is_paused_or_ends_nothing_is_learned_from_it(tmp_path):
    run = Run(tmp_path)
    assert run.go(100, active=False) == []
    assert run.go(15) == [], "the time before does not count"
    assert run.go(10) == [2]


def test_what_is_refused_is_not_asked_for_again_at_once(tmp_path):
    run = Run(tmp_path, room=1)
    assert run.go(150) == [2]
    assert run.scaling.wanted == 1
