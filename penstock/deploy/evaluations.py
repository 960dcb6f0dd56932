"""Evaluations done by the rollout workers of a run: split over all of them, or one beside training.

A part whose worker dies is given to another one; only an evaluation that fails again and again is an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
import ray.exceptions

from penstock.deploy.fleet import Member
from penstock.rollout.evaluation import EvaluationJob, EvaluationReport, summarise
from penstock.services.contracts import DeadlinePassed, PenstockError
from penstock.services.versions import Version

ATTEMPTS = 3
"""How often one part is tried."""


@dataclass
class _Part:
    """Some of the prompts, and who has them."""

    job: EvaluationJob
    worker: Member | None = None
    answer: Any = None
    report: EvaluationReport | None = None
    failures: list[str] = field(default_factory=list)


class Pending:
    """An evaluation that is going on. Nothing here waits."""

    def __init__(self, job: EvaluationJob, workers: Callable[[], Sequence[Member]], most: int | None = None) -> None:
        """Split `job` over the workers that run, at most `most` of them. Raises PenstockError when none runs."""
        self._workers = workers
        self._job = job
        self._began = time.monotonic()
        able = self._able()[:most][: len(job.prompts)]
        if not able:
            raise PenstockError("nothing can be evaluated: no rollout worker is running")
        self._parts = [_Part(replace(job, prompts=job.prompts[i :: len(able)])) for i in range(len(able))]
        for part, worker in zip(self._parts, able, strict=True):
            self._give(part, worker)

    @property
    def overdue(self) -> float | None:
        """Seconds since it began, once that is more than its deadline."""
        taken = time.monotonic() - self._began
        return taken if taken > self._job.deadline else None

    @property
    def missing(self) -> str:
        """Who has not answered."""
        return ", ".join(p.worker.name if p.worker else "nobody" for p in self._parts if p.report is None)

    def collect(self) -> bool:
        """Take answers that are there and hand on parts whose worker is gone; True when all is there.

        Raises PenstockError for a part that has failed too often."""
        for part in self._parts:
            if part.report is not None:
                continue
            if part.answer is None:
                self._hand_on(part)
            elif ray.wait([part.answer], timeout=0)[0]:
                self._take(part)
        return all(part.report is not None for part in self._parts)

    def result(self) -> tuple[Version, dict[str, float]]:
        """The version that was measured and its metrics, once all is there."""
        reports = [part.report for part in self._parts if part.report is not None]
        samples = tuple(sample for report in reports for sample in report.samples)
        metrics = summarise(samples, self._job.part, self._job.right_at)
        return reports[0].version, metrics | {"eval/seconds": time.monotonic() - self._began}

    def _take(self, part: _Part) -> None:
        try:
            part.report = ray.get(part.answer)
        except ray.exceptions.RayError as error:
            assert part.worker is not None, "it had an answer"
            part.failures.append(f"{part.worker.name}: {str(error).strip().splitlines()[-1]}")
            if len(part.failures) >= ATTEMPTS:
                raise PenstockError(f"an evaluation failed {ATTEMPTS} times: {'; '.join(part.failures)}") from error
            part.answer = None

    def _hand_on(self, part: _Part) -> None:
        """To a worker other than the one that failed, if there is one; to it when it runs again."""
        able = sorted(self._able(), key=lambda worker: worker is part.worker)
        if able:
            self._give(part, able[0])

    def _give(self, part: _Part, worker: Member) -> None:
        part.worker = worker
        part.answer = worker.handle.evaluate.remote(part.job)

    def _able(self) -> list[Member]:
        return [worker for worker in self._workers() if worker.state == "running" and not worker.leaving]


def wait(
    pending: Pending, meanwhile: Callable[[], None], abandon: Callable[[], bool]
) -> tuple[Version, dict[str, float]] | None:
    """Until all parts are there, or None once `abandon` says so; `meanwhile` is called between looks.

    Raises DeadlinePassed naming who is missing, PenstockError when a part failed too often."""
    while not pending.collect():
        if abandon():
            return None
        if (taken := pending.overdue) is not None:
            raise DeadlinePassed(f"waited {taken:.0f} s (evaluation.deadline) for {pending.missing} to evaluate")
        meanwhile()
        time.sleep(0.1)
    return pending.result()
