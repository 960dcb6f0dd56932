"""Many actors are looked at with one question to Ray, and asked in turn. Ray and the actors are fakes."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from penstock.deploy.fleet import Member
from penstock.deploy.polling import Polling
from penstock.services.contracts import DeadlinePassed


class Answer:
    """What a call returns; there at once, or when it is said to be."""

    def __init__(self, value=None, there=True) -> None:
        self.value, self.there = value, there


class Fleet:
    """Members that run, with what was asked of each and what Ray was asked."""

    def __init__(self, roles: dict[str, str]) -> None:
        self.asked: Counter[str] = Counter()
        self.waits: list[int] = []
        self.running = {name: Answer({"left": 1.0}, there=False) for name in roles}
        self.members = [self._member(name, role) for name, role in roles.items()]

    @property
    def few(self) -> list[Member]:
        return [member for member in self.members if member.role != "rollout"]

    @property
    def workers(self) -> list[Member]:
        return [member for member in self.members if member.role == "rollout"]

    def _member(self, name, role) -> Member:
        def stats():
            self.asked[name] += 1
            return Answer({"doing": f"question {self.asked[name]}"})

        handle = SimpleNamespace(
            ready=SimpleNamespace(remote=lambda: Answer({"pid": 1})),
            run=SimpleNamespace(remote=lambda: self.running[name]),
            stats=SimpleNamespace(remote=stats),
        )
        member = Member(name, role, Path("none.log"), start=lambda _: handle)
        member.launch()
        return member

    def get(self, answer):
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value

    def wait(self, answers, num_returns, timeout):
        assert (num_returns, timeout) == (len(answers), 0)
        self.waits.append(len(answers))
        there = [answer for answer in answers if answer.there]
        return there, [answer for answer in answers if not answer.there]


@pytest.fixture
def fleet(monkeypatch):
    def build(workers: int, **others: str) -> Fleet:
        made = Fleet({**others, **{f"rollout-{i}": "rollout" for i in range(workers)}})
        monkeypatch.setattr(ray, "wait", made.wait)
        monkeypatch.setattr(ray, "get", made.get)
        monkeypatch.setattr(ray, "kill", lambda handle, no_restart: None)
        polling = Polling(0.2, 600)
        for _ in range(5):
            polling.look(made.few, made.workers, 10)
        for member in made.members:
            assert member.state == "ready"
            member.run()
        made.asked.clear()
        made.waits.clear()
        return made

    return build


def test_ray_is_asked_once_however_many_members_there_are(fleet):
    made = fleet(100, learner="learner")
    polling = Polling(0.2, 600)
    for _ in range(3):
        polling.look(made.few, made.workers, 10)
    assert len(made.waits) == 3
    # Everybody's end, and the answers to what the look before has asked: of two workers and the learner.
    assert made.waits[1:] == [104, 104]


def test_a_few_workers_are_asked_at_every_look_and_many_in_turn(fleet):
    for workers, looks, least, most in ((2, 6, 6, 6), (12, 12, 2, 2), (7, 10, 2, 3)):
        made = fleet(workers)
        polling = Polling(0.2, 600)
        for _ in range(looks):
            polling.look(made.few, made.workers, 10)
        counts = [made.asked[member.name] for member in made.members]
        assert (min(counts), max(counts)) == (least, most), workers


def test_learner_and_scorers_are_asked_at_every_look(fleet):
    made = fleet(50, learner="learner", scorer="scorer")
    polling = Polling(0.2, 600)
    for _ in range(5):
        polling.look(made.few, made.workers, 10)
    assert made.asked["learner"] == made.asked["scorer"] == 5
    assert made.members[0].stats == {"doing": "question 4"}, "the last question is answered at the next look"


def test_each_is_asked_four_times_before_it_counts_as_silent(fleet):
    made = fleet(1000)
    silence, tick = 8.0, 0.2
    polling = Polling(tick, silence)
    for _ in range(round(silence / tick)):
        polling.look(made.few, made.workers, 10)
    assert {made.asked[member.name] for member in made.members} == {4}


def test_a_death_and_an_end_are_noticed_at_the_next_look_by_those_who_are_not_asked_too(fleet):
    made = fleet(100)
    polling = Polling(0.2, 600)
    polling.look(made.few, made.workers, 10)
    dead, ended = made.running["rollout-80"], made.running["rollout-90"]
    dead.value, dead.there, ended.there = ray.exceptions.ActorDiedError(), True, True
    polling.look(made.few, made.workers, 10)
    assert (made.members[80].state, made.members[90].state, made.members[90].result) == ("dead", "ended", {"left": 1.0})
    assert {member.state for member in made.members[:80]} == {"running"}


def test_of_a_thousand_a_fifth_is_looked_at_each_time_and_every_death_is_noticed_within_a_second(fleet):
    made = fleet(1000)
    polling = Polling(0.2, 600)
    polling.look(made.few, made.workers, 10)
    made.waits.clear()
    for number in (0, 333, 999):
        dead = made.running[f"rollout-{number}"]
        dead.value, dead.there = ray.exceptions.ActorDiedError(), True
    for _ in range(5):
        polling.look(made.few, made.workers, 10)
    assert [m.name for m in made.members if m.state == "dead"] == ["rollout-0", "rollout-333", "rollout-999"]
    # The ends of two hundred, of the two that are asked now, and of the two asked before with their answers.
    assert max(made.waits) <= 200 + 2 + 2 * 2


def test_workers_may_join_and_leave_between_looks(fleet):
    made = fleet(20)
    polling = Polling(0.2, 600)
    polling.look(made.few, made.workers, 10)
    del made.members[:15]
    for _ in range(5):
        polling.look(made.few, made.workers, 10)
    assert all(made.asked[member.name] >= 2 for member in made.members)
    made.members.clear()
    polling.look(made.few, made.workers, 10)


def test_one_that_takes_too_long_to_start_is_told_of(fleet):
    made = fleet(1)
    late = made._member("rollout-1", "rollout")
    late._ready = Answer(there=False)
    with pytest.raises(DeadlinePassed, match=r"rollout-1 to start"):
        Polling(0.2, 600).look(made.few, [*made.workers, late], -1)


def test_nobody_is_silent_because_the_driver_was_stopped_for_a_while(fleet, monkeypatch):
    """Of many workers few are asked at a time, and the others have no answer waiting when the driver goes on."""
    made, now = fleet(50, learner="learner"), [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    polling = Polling(0.2, 600)
    for _ in range(3):
        now[0] += 0.2
        polling.look(made.few, made.workers, 10)
    now[0] += 3600
    polling.look(made.few, made.workers, 10)
    assert max(member.silent for member in made.members) < 10
    assert polling.away == pytest.approx(3600)
    now[0] += 4.0
    polling.look(made.few, made.workers, 10)
    assert max(member.silent for member in made.members) > 4, "a slow look is no excuse"
    assert polling.away == 0


def test_an_actor_that_starts_has_its_time_although_the_driver_was_stopped_for_a_while(fleet, monkeypatch):
    made, now = fleet(1), [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    late = made.members[0]
    late.launch()
    late._ready = Answer(there=False)
    polling = Polling(0.2, 600)
    polling.look(made.few, made.workers, 10)
    now[0] += 3600
    polling.look(made.few, made.workers, 10)
    assert late.state == "starting"
    for _ in range(4):
        now[0] += 3
        polling.look(made.few, made.workers, 10)
    assert late.state == "dead" and "waited 10 s (deadlines.start)" in late.cause
