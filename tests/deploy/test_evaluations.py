"""An evaluation split over workers: put together again, and handed on when a worker dies. Ray's answers are fakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
import ray.exceptions
from builders import prompt

from penstock.deploy import evaluations
from penstock.deploy.fleet import Member
from penstock.rollout.evaluation import EvaluationJob, EvaluationReport, EvaluationSample
from penstock.services.contracts import DeadlinePassed, PenstockError
from penstock.services.trajectory import Sampling
from penstock.services.versions import Version

JOB = EvaluationJob(tuple(prompt(i) for i in range(4)), Sampling(), greedy=False)


class Method:
    def __init__(self, answer):
        self._answer = answer

    def remote(self, job):
        return self._answer(job)


class Handle:
    def __init__(self, answer):
        self.evaluate = Method(answer)


def right(job):
    samples = tuple(
        EvaluationSample("s", p.row, False, float(p.index % 2), {}, None, 3, "stop", p.text, "x") for p in job.prompts
    )
    return EvaluationReport(Version(0, 7), {}, samples)


class Gone(ray.exceptions.RayError):
    """The worker's process is no more."""


def died(_):
    return Gone("gone")


def worker(name, answer=right, state="running"):
    return Member(name, "rollout", Path("none.log"), start=lambda _: None, handle=Handle(answer), state=state)


@pytest.fixture(autouse=True)
def answers_are_there_at_once(monkeypatch):
    def get(answer):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda references, timeout: (references, []))


def test_the_parts_of_all_workers_make_one_accuracy():
    pending = evaluations.Pending(JOB, lambda: [worker("a"), worker("b"), worker("c", state="starting")])
    assert pending.collect()
    version, metrics = pending.result()
    assert version == Version(0, 7)
    assert metrics["eval/sampled/accuracy"] == 0.5


def test_a_part_whose_worker_died_is_given_to_another():
    workers = [worker("dead", died), worker("alive")]
    pending = evaluations.Pending(JOB, lambda: workers)
    found = evaluations.wait(pending, lambda: None, lambda: False)
    assert found is not None and found[1]["eval/sampled/accuracy"] == 0.5


def test_a_part_that_always_fails_is_an_error_with_every_failure():
    pending = evaluations.Pending(JOB, lambda: [worker("dead", died)])
    with pytest.raises(PenstockError, match=r"failed 3 times: dead: .*; dead: .*; dead: "):
        evaluations.wait(pending, lambda: None, lambda: False)


def test_without_a_worker_nothing_can_be_evaluated():
    with pytest.raises(PenstockError, match="no rollout worker is running"):
        evaluations.Pending(JOB, lambda: [worker("a", state="dead")])


def test_waiting_ends_with_who_is_missing_or_when_it_is_abandoned(monkeypatch):
    monkeypatch.setattr(ray, "wait", lambda references, timeout: ([], references))
    late = EvaluationJob(JOB.prompts, Sampling(), greedy=False, deadline=0.01)
    with pytest.raises(DeadlinePassed, match="for slow to evaluate"):
        evaluations.wait(evaluations.Pending(late, lambda: [worker("slow")]), lambda: None, lambda: False)
    assert evaluations.wait(evaluations.Pending(JOB, lambda: [worker("slow")]), lambda: None, lambda: True) is None
