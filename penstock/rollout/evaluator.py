"""Evaluations beside training: one after the other, in the worker's own thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from penstock.rollout.errors import PromptTooLong
from penstock.rollout.evaluation import Evaluation, EvaluationJob, EvaluationReport
from penstock.services.contracts import DeadlinePassed, Generator, PenstockError, Scorer
from penstock.services.trajectory import Completion
from penstock.services.versions import Version
from penstock.services.weights.files import WeightsMissing


class Evaluator:
    """Takes jobs from any thread; all else belongs to the thread that owns the generator."""

    def __init__(self, generator: Generator, scorer: Scorer, slots: int) -> None:
        """slots: how many requests an evaluation may have in the generator at a time."""
        self._generator = generator
        self._scorer = scorer
        self._slots = slots
        self._jobs: deque[tuple[EvaluationJob, Future[EvaluationReport]]] = deque()
        self._current: tuple[Evaluation, Future[EvaluationReport]] | None = None
        self._closed = ""
        self._lock = threading.Lock()
        """Between `ask` and `close`: a job that comes too late must hear of it."""

    @property
    def busy(self) -> bool:
        """True while weights must stay as they are."""
        return self._current is not None

    def ask(self, job: EvaluationJob) -> Future[EvaluationReport]:
        """The future raises PenstockError when the evaluator was closed before the job was done."""
        result: Future[EvaluationReport] = Future()
        with self._lock:
            if not self._closed:
                self._jobs.append((job, result))
                return result
        result.set_exception(PenstockError(self._closed))
        return result

    def advance(self, swap: Callable[[Version], None]) -> None:
        """Begin, feed or end an evaluation. `swap` brings the generator to the version that a job asks for."""
        if self._current is None and self._jobs:
            self._begin(*self._jobs.popleft(), swap)
        if self._current is None:
            return
        evaluation, result = self._current
        try:
            if not evaluation.done:
                return evaluation.pump(self._generator)
            result.set_result(evaluation.report())
        except (DeadlinePassed, PromptTooLong) as error:
            result.set_exception(error)
            flying = set(self._generator.in_flight)
            self._generator.take_back([key for key in evaluation.keys if key in flying])
        self._current = None

    def _begin(self, job: EvaluationJob, result: Future[EvaluationReport], swap: Callable[[Version], None]) -> None:
        try:
            if job.version is not None and job.version != self._generator.version:
                swap(job.version)
        except WeightsMissing as error:
            return result.set_exception(error)
        self._current = Evaluation(job, self._generator.version, self._slots), result

    def absorb(self, key: str, completion: Completion) -> bool:
        """Take one answer; False when it belongs to training."""
        return self._current is not None and self._current[0].absorb(key, completion, self._scorer)

    def close(self, why: str) -> None:
        """Jobs that are not done fail with `why`."""
        with self._lock:
            self._closed = why
            waiting = [result for _, result in self._jobs] + ([self._current[1]] if self._current else [])
            self._jobs.clear()
        for result in waiting:
            result.set_exception(PenstockError(why))
