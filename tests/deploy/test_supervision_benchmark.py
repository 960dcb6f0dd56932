"""The real supervisor over the crowd of its benchmark, without Ray: the answers are there at once."""

from __future__ import annotations

import asyncio
import time

import pytest
import ray

from benchmarks import supervision_driver
from benchmarks.supervision_driver import Crowd, Driver
from penstock.deploy import fleet


class Answer:
    def __init__(self, value=None, there=True) -> None:
        self.value, self.there = value, there


class Actor:
    """A crowd in this process."""

    def __init__(self, *arguments) -> None:
        self._crowd = Crowd(*arguments)

    def __getattr__(self, method):
        def remote(*arguments):
            if method == "run":
                self._crowd._began, self._crowd._told = time.time(), -1
                return Answer(there=False)
            return Answer(asyncio.run(getattr(self._crowd, method)(*arguments)))

        return type("Method", (), {"remote": staticmethod(remote)})


class Remote:
    def options(self, **_):
        return self

    def remote(self, *arguments) -> Actor:
        return Actor(*arguments)


class Cluster:
    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(ray, "remote", lambda _: Remote())
    monkeypatch.setattr(ray, "wait", lambda answers, num_returns, timeout: ([a for a in answers if a.there], []))
    monkeypatch.setattr(ray, "get", lambda answer, timeout=None: dict(answer.value))
    monkeypatch.setattr(fleet, "_done", lambda answer: answer.there)
    monkeypatch.setattr(supervision_driver, "Cluster", lambda *_, **__: Cluster())


def test_the_supervisor_handles_the_steps_of_a_run_with_many_simulated_workers(tmp_path):
    with Driver(tmp_path, rate=500.0, groups=50) as driver:
        found = driver.measure(workers=200, seconds=0.5)
    assert 0 < found["us_per_group"] < 1e6
    (run,) = tmp_path.glob("with-200-*")
    assert (run / "metrics.jsonl").read_text().count("rollout/tokens_per_second") >= 5
    assert (run / "status.json").read_text().count('"role":"rollout"') == 200
