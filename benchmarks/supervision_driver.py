"""What the driver's process spends on a run with many workers, for `benchmarks.supervision`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from penstock.deploy.catalogue import catalogue
from penstock.deploy.cluster import Cluster
from penstock.deploy.fleet import Member
from penstock.deploy.journal import Journal
from penstock.deploy.parts import Parts
from penstock.deploy.runfile import RunFile
from penstock.deploy.scorers import facts_of_process
from penstock.deploy.signals import Interruption
from penstock.deploy.storehost import StoreHost, run_id_of
from penstock.deploy.supervisor import TICK, Supervisor
from penstock.rollout.metrics import METRICS as ROLLOUT
from penstock.services.lanes import Span
from penstock.services.replay import LedgerRules
from penstock.services.rundir import RunDir
from penstock.services.versions import FIRST, Version

CROWDS = 4
"""Ray actors over which the simulated workers are spread."""
WARM = 1
"""Steps before the measurement."""


class Crowd:
    """Answers for many actors of one role, as each of them would."""

    def __init__(self, interval: float = 0.0) -> None:
        """`interval` is the seconds between a learner's steps."""
        self._interval = interval
        self._began, self._told = 0.0, -1
        self._metrics = {name: 0.5 for name in catalogue() if "{" not in name and not name.startswith("rollout/")}
        self._rollout = {name: 0.5 for name in ROLLOUT if name.startswith("rollout/")}

    async def ready(self, _: str) -> dict[str, Any]:
        return facts_of_process()

    async def run(self, _: str) -> None:
        self._began, self._told = time.time(), -1
        await asyncio.Event().wait()

    async def set_max_lag(self, *_: Any) -> None: ...

    async def use_scorers(self, *_: Any) -> None: ...

    async def stats(self, _: str) -> dict[str, Any]:
        now = time.time()
        stats = {"phase": "generating", "doing": "generating", "version": "0.1", "published": "0.1", "closed": ""}
        process = {"silent": 0.0, "process/rss": 2**30, "process/pid": os.getpid()}
        spans = [Span("generating", now - 1, now)] * 4
        return {**self._rollout, **stats, **process, "spans": spans, "reports": self._reports(now)}

    def _reports(self, now: float) -> list[dict[str, Any]]:
        """A learner's steps since the last time."""
        if not self._interval or not self._began:
            return []
        first, self._told = self._told + 1, int((now - self._began) / self._interval)
        return [self._report(Version(0, step), now) for step in range(first, self._told + 1)]

    def _report(self, version: Version, now: float) -> dict[str, Any]:
        told = {"version": str(version), "at": now, "coefficients": {}, "heard": 0}
        if version == FIRST:
            return {"kind": "started", **told}
        sample = {"prompt_index": version.step, "prompt": "What is 12+34?", "answer": "46" * 100, "reward": 1.0}
        metrics = self._metrics | {"mismatch/max": 0.0}
        return {"kind": "step", "metrics": metrics, "samples": [sample] * 4, "damage": [], **told}


class _Handle:
    """One of a crowd: a call at it is a call at the crowd's actor, by its name."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor, self._name = actor, name

    def __getattr__(self, method: str) -> _Call:
        if method.startswith("_"):  # pickle asks for methods of its own
            raise AttributeError(method)
        return _Call(getattr(self._actor, method), self._name)


class _Call:
    def __init__(self, method: Any, name: str) -> None:
        self.remote: Callable[..., Any] = partial(method.remote, name)


class Simulated(Parts):
    """A run's parts with a crowd in the place of its actors; the cluster was there before."""

    def __init__(self, run_file: RunFile, directory: RunDir, crowd: list[Any], learner: Any) -> None:
        super().__init__(run_file, directory, None)
        self._crowd, self._learner, self._given = crowd, learner, 0

    def _bring_up(self) -> None:
        run_file = self._run_file
        self.host = StoreHost(run_file.store, self._directory, run_id_of(self._directory), None)
        self._stack.callback(self.host.close)
        self._rules = LedgerRules(run_file.staleness.first_lag, run_file.learner.groups_per_step, None, 2**31)
        self.host.store.attach(self._rules)
        self.host.store.reconcile(FIRST, 0, "start")
        log = self._directory.log("learner-0")
        self.learners.append(Member("learner-0", "learner", log, lambda _: _Handle(self._learner, "learner-0")))
        self.learners[0].launch()
        self.scoring.add()
        for _ in range(run_file.rollout.workers):
            self.rollout.add()

    def _start_worker(self, name: str, _log: Path, _restarts: int) -> Any:
        self._given += 1
        return _Handle(self._crowd[self._given % CROWDS], name)

    def _start_scorer(self, name: str, _log: Path, _restarts: int) -> Any:
        return _Handle(self._crowd[0], name)

    def begin_learning(self, tell: Callable[[], object] = lambda: None) -> None:
        """The learner has published its first weights."""
        tell()
        self.learners[0].run()


class Driver:
    """A Ray cluster with crowds on it; every measurement is a run of its own."""

    def __init__(self, folder: Path, rate: float, groups: int) -> None:
        self._folder, self._rate, self._groups = folder, rate, groups

    def __enter__(self) -> Driver:
        self._cluster = Cluster(None, "penstock-bench", actors=CROWDS + 1)
        crowd = ray.remote(Crowd).options(num_cpus=0, max_concurrency=10_000)
        self._crowd = [crowd.remote() for _ in range(CROWDS)]
        self._learner = crowd.remote(self._groups / self._rate)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._cluster.close()

    def measure(self, workers: int, seconds: float) -> dict[str, float]:
        """Microseconds of CPU per group, the share of a core that this is, milliseconds that a look takes."""
        run_file = RunFile.model_validate(
            {
                "model": {"path": "none"},
                "data": {"sources": {"none": {"path": "none"}}},
                "reward": {"rules": {"exact": {}}},
                "rollout": {"workers": workers},
                "engine": {"kind": "paced"},
                "learner": {"groups_per_step": self._groups},
            }
        )
        directory = RunDir.create(self._folder, f"with-{workers}", run_file.to_yaml())
        journal = Journal(directory, "bench", run_file.recording, run_file.limits, None)
        steps = max(1, round(seconds * self._rate / self._groups))
        with Simulated(run_file, directory, self._crowd, self._learner) as parts:
            supervisor = Supervisor(parts, run_file, directory, journal, Interruption())
            supervisor.until(lambda: all(member.state != "starting" for member in parts.members))
            parts.begin_learning()
            supervisor.until(lambda: all(worker.state == "running" for worker in parts.workers))
            first = journal.version.step + WARM
            supervisor.until(lambda: journal.version.step >= first)
            first, began, before, looks = journal.version.step, time.monotonic(), time.process_time(), []
            while journal.version.step < first + steps:
                looked = time.monotonic()
                supervisor.tick()
                looks.append(time.monotonic() - looked)
                time.sleep(TICK)
            spent, took = time.process_time() - before, time.monotonic() - began
            done = (journal.version.step - first) * self._groups
        journal.close()
        return {
            "us_per_group": 1e6 * spent / done,
            "percent_of_a_core": 100 * spent / took,
            "look_ms": 1e3 * sum(looks) / len(looks),
            "look_most_ms": 1e3 * max(looks),
        }
