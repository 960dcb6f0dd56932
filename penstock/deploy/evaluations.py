"""Evaluations done by the rollout workers of a run: split over all of them, or one beside training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from penstock.deploy.fleet import Member
from penstock.rollout.evaluation import EvaluationJob, EvaluationReport, summarise
from penstock.services.contracts import DeadlinePassed, PenstockError
from penstock.services.versions import Version


@dataclass
class Pending:
    """Parts of an evaluation that workers are busy with."""

    job: EvaluationJob
    parts: dict[Any, Member]
    """Ray reference of an answer to the worker that owes it."""
    began: float

    @property
    def done(self) -> bool:
        ready, _ = ray.wait(list(self.parts), num_returns=len(self.parts), timeout=0)
        return len(ready) == len(self.parts)

    def result(self) -> tuple[Version, dict[str, float]]:
        """The version that was measured and its metrics. Raises what a worker raised."""
        reports: list[EvaluationReport] = ray.get(list(self.parts))
        samples = tuple(sample for report in reports for sample in report.samples)
        metrics = summarise(samples, self.job.part, self.job.right_at) | {"eval/seconds": time.monotonic() - self.began}
        return reports[0].version, metrics


def at(job: EvaluationJob, version: Version) -> EvaluationJob:
    """The same job for one version."""
    return replace(job, version=version)


def begin(workers: Sequence[Member], job: EvaluationJob) -> Pending:
    """Split the prompts over the workers that run; returns at once. Raises PenstockError when none runs."""
    able = [worker for worker in workers if worker.state == "running"][: len(job.prompts)]
    if not able:
        raise PenstockError("nothing can be evaluated: no rollout worker is running")
    began = time.monotonic()
    parts = {
        worker.handle.evaluate.remote(replace(job, prompts=job.prompts[i :: len(able)])): worker
        for i, worker in enumerate(able)
    }
    return Pending(job, parts, began)


def wait(pending: Pending, meanwhile: Callable[[], None], deadline: float) -> tuple[Version, dict[str, float]]:
    """Until all parts are there; `meanwhile` is called between looks. Raises DeadlinePassed naming who is missing."""
    while not pending.done:
        if time.monotonic() - pending.began > deadline:
            _, missing = ray.wait(list(pending.parts), num_returns=len(pending.parts), timeout=0)
            names = ", ".join(sorted(pending.parts[reference].name for reference in missing))
            raise DeadlinePassed(f"waited {deadline:.0f} s for {names} to evaluate {len(pending.job.prompts)} prompts")
        meanwhile()
        time.sleep(0.1)
    return pending.result()
