"""A run's evaluations when there is nobody to make them. Actors and the supervisor are fakes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from penstock.deploy import evaluations
from penstock.deploy.run import Conductor
from penstock.deploy.runfile import RunFile
from penstock.deploy.signals import Interruption
from penstock.services.rundir import RunDir
from penstock.services.versions import FIRST

TEXT = {
    "name": "evaluated",
    "model": {"path": "none"},
    "data": {"sources": {"none": {"path": "none"}}},
    "reward": {"rules": {"exact": {}}},
}


class Supervisor:
    """One worker is wanted, which never comes; after three looks the driver gives it up."""

    def __init__(self, ready: bool) -> None:
        self.workers = SimpleNamespace(wanted=1)
        self.scaling = {"rollout": self.workers}
        self.looks, self.released = 0, []
        self.evaluating = SimpleNamespace(possible=ready, release=self.released.append)

    def tick(self) -> None:
        self.looks += 1
        assert self.looks < 10, "it is waited for without end"
        if self.looks == 3:
            self.workers.wanted = 0

    def until(self, done) -> None:
        while not done():
            self.tick()


@pytest.mark.parametrize("ready", [False, True], ids=["while it is waited for", "while it evaluates"])
def test_when_the_last_worker_is_gone_the_evaluation_is_given_up_and_the_run_goes_on(tmp_path, monkeypatch, ready):
    run_file = RunFile.model_validate(TEXT)
    directory = RunDir.create(tmp_path, "evaluated", run_file.to_yaml())
    conductor = Conductor(run_file, directory, None, Interruption(), resume=False)
    conductor._supervisor = supervisor = Supervisor(ready)
    never = SimpleNamespace(collect=lambda: False, overdue=None)
    monkeypatch.setattr(evaluations, "Pending", lambda job, workers: never)
    monkeypatch.setattr("penstock.deploy.run.replace", lambda job, version: job)
    monkeypatch.setattr(evaluations.time, "sleep", lambda _: None)
    conductor._evaluate(SimpleNamespace(evaluation="a job", workers=[]), "after training", wanted=True)
    warning = directory.read_events()[-1]
    assert warning.message == "nothing is evaluated after training: the run was scaled to no rollout worker"
    assert supervisor.released == [FIRST]
