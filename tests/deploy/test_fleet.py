"""One actor as its supervisor sees it. Ray's answers are fakes: an exception in place of an answer is a lost call."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import ray
import ray.exceptions

from penstock.deploy.fleet import ATTEMPTS, ActorLost, Member, wait_for, wait_until_ready
from penstock.services.contracts import DeadlinePassed

NEVER = object()
UNAVAILABLE = ray.exceptions.ActorUnavailableError("connection lost", b"0" * 16)


class Method:
    def __init__(self, answer):
        self.answer = answer

    def remote(self):
        return self.answer


class Handle:
    def __init__(self, ready=None, run=NEVER, stats=None):
        self.ready, self.run, self.stats = Method(ready or {"pid": 7}), Method(run), Method(stats or {})


@pytest.fixture(autouse=True)
def fake_ray(monkeypatch):
    def get(answer, timeout=None):
        if isinstance(answer, Exception):
            raise answer
        return dict(answer) if isinstance(answer, dict) else answer

    killed = []
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda r, timeout: ([], r) if r[0] is NEVER else (r, []))
    monkeypatch.setattr(ray, "kill", lambda handle, no_restart: killed.append(handle))
    return killed


def member(handle, role="rollout") -> Member:
    made = Member("rollout-0", role, Path("none.log"), start=lambda _: handle)
    made.launch()
    return made


def test_an_actor_is_starting_then_ready_then_running_then_ended():
    actor = member(Handle(run="limits.steps", stats={"doing": "x", "reports": [{"kind": "step"}]}), "learner")
    assert actor.state == "starting"
    actor.poll(10)
    assert (actor.state, actor.facts) == ("ready", {"pid": 7})
    actor.run()
    actor.poll(10)
    assert (actor.state, actor.result) == ("ended", "limits.steps")
    actor.last_words(1)
    assert actor.read_inbox() != [] and actor.read_inbox() == []


def test_a_worker_that_has_ended_says_its_last_numbers_and_a_new_life_begins_without_them():
    actor = member(Handle(run={"rollout/tokens_put": 7.0}, stats={"rollout/tokens_put": 3.0}))
    actor.poll(10)
    actor.run()
    actor.poll(10)
    assert actor.state == "ended" and actor.stats == {"rollout/tokens_put": 7.0}
    actor.launch()
    assert (actor.stats, actor.past) == ({}, [{"rollout/tokens_put": 7.0}])


def test_a_scorer_has_no_loop_to_run_and_is_away_while_ray_starts_it_again():
    handle = Handle(stats=UNAVAILABLE)
    actor = member(handle, "scorer")
    actor.poll(10)
    actor.run()
    for _ in range(2):
        actor.poll(10)
    assert actor.state == "running" and actor.away
    handle.stats.answer = {"scorer/groups": 1.0}
    for _ in range(2):
        actor.poll(10)
    assert not actor.away


@pytest.mark.parametrize("added", [False, True])
def test_one_that_starts_too_slowly_ends_the_run_unless_it_was_added_to_it(added):
    actor = member(Handle(ready=NEVER))
    actor.added = added
    if added:
        actor.poll(-1)
        assert actor.state == "dead" and "waited -1 s (deadlines.start)" in actor.cause
    else:
        with pytest.raises(DeadlinePassed, match=r"deadlines\.start"):
            actor.poll(-1)


def test_a_call_lost_to_a_broken_connection_is_the_death_of_an_actor_that_ray_does_not_restart():
    actor = member(Handle(run=UNAVAILABLE))
    actor.poll(10)
    actor.run()
    actor.poll(10)
    assert actor.state == "dead"


def test_a_scorer_that_ray_restarts_may_miss_a_call():
    actor = member(Handle(stats=UNAVAILABLE), role="scorer")
    actor.poll(10)
    actor.state = "running"
    for _ in range(3):
        actor.poll(10)
    assert actor.state == "running"


def test_a_process_that_does_not_answer_becomes_silent_whatever_it_said_last(monkeypatch):
    actor = member(Handle(stats={"silent": 0.5}))
    actor.poll(10)
    actor.run()
    actor.poll(10)
    actor.poll(10)
    assert actor.silent == pytest.approx(0.5, abs=0.3)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 100)
    assert actor.silent >= 100


def test_a_first_start_that_is_late_is_an_error_and_a_replacement_that_is_late_a_death(fake_ray):
    actor = member(Handle(ready=NEVER))
    actor.handle.ready = Method(NEVER)
    actor._ready = NEVER
    with pytest.raises(DeadlinePassed, match=r"rollout-0 to start.*none\.log"):
        actor.poll(-1)
    old = actor.handle
    actor.launch()
    assert fake_ray == [old], "what is left of the first start is ended"
    actor.poll(-1)
    assert actor.state == "dead" and "deadlines.start" in actor.cause


def test_a_view_tells_what_was_heard_last_and_is_made_anew_only_for_that():
    actor = member(Handle(stats={"doing": "generating", "rollout/in_flight": 3.0}))
    actor.poll(10)
    actor.run()
    assert actor.view().state == "running" and actor.view().in_flight == 0
    actor.poll(10)
    actor.poll(10)
    assert actor.view().state == "generating" and actor.view().in_flight == 3
    assert actor.view() is actor.view()
    actor.leaving = True
    assert actor.view().state == "leaving"
    actor.state, actor.cause = "dead", "out of memory\nlast lines"
    assert actor.view().state == "dead: out of memory"


def starts(*answers) -> Member:
    """An actor of which each start in turn is answered so."""
    made = Member("rollout-0", "rollout", Path("none.log"), start=lambda number: Handle(ready=answers[number]))
    made.launch()
    return made


def test_who_is_killed_while_a_run_starts_is_started_again_and_the_start_goes_on():
    told = []
    actor = starts(ray.exceptions.ActorDiedError(), {"pid": 8})
    wait_until_ready([actor, member(Handle())], 10, lambda: None, lambda m: told.append(m.cause), pause=0)
    assert (actor.state, actor.restarts, actor.facts) == ("ready", 1, {"pid": 8})
    assert len(told) == 1 and "rollout-0 died: the process is gone without a word" in told[0]


def test_who_is_killed_again_and_again_ends_the_start():
    actor = starts(*[ray.exceptions.ActorDiedError()] * ATTEMPTS)
    with pytest.raises(ActorLost, match="gone without a word"):
        wait_until_ready([actor], 10, lambda: None, pause=0)
    assert actor.restarts == ATTEMPTS - 1


def test_who_cannot_start_ends_the_start_at_once():
    """What it raises while it is built it would raise again."""
    built = ray.exceptions.ActorDiedError()
    built._actor_init_failed = True
    for failure in (ray.exceptions.RayTaskError("ready", "Traceback", OSError("no such model")), built):
        actor = starts(failure, {"pid": 8})
        with pytest.raises(ActorLost):
            wait_until_ready([actor], 10, lambda: None, pause=0)
        assert actor.restarts == 0


def told(answers, meanwhile=lambda: None):
    return wait_for(answers, "to be told what to learn", 0.05, "deadlines.start", meanwhile)


def test_answers_come_in_the_order_of_the_asked(monkeypatch):
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: (refs[-1:], refs[:-1]))
    looks = []
    assert told({"learner-0": 1, "learner-1": 2}, lambda: looks.append(1)) == [1, 2] and len(looks) == 2


def test_who_does_not_answer_fails_or_is_gone_is_named(monkeypatch):
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: ([r for r in refs if r is not NEVER], []))
    with pytest.raises(DeadlinePassed, match=r"waited 0 s \(deadlines.start\) for learner-1 to be told what to learn"):
        told({"learner-0": 1, "learner-1": NEVER})
    failed = ray.exceptions.RayTaskError("prepare", "Traceback …", ValueError("no such row"))
    with pytest.raises(ActorLost, match=r"^learner-0 failed to be told what to learn: no such row"):
        told({"learner-0": failed, "learner-1": NEVER})
    with pytest.raises(ray.exceptions.RayActorError):
        told({"learner-0": ray.exceptions.ActorDiedError()})


def test_one_that_was_ready_and_is_dead_since_is_started_again_too():
    actor, again = member(Handle()), []
    actor.poll(10)
    actor.state, actor.gone = "dead", True
    wait_until_ready([actor], 10, lambda: None, again.append, pause=0)
    assert again == [actor] and actor.state == "ready" and actor.restarts == 1
