"""Rollout workers as Ray actors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from penstock.deploy.deaths import begin_life
from penstock.deploy.exporter import Export, export_actor
from penstock.deploy.memory import resident
from penstock.deploy.remote_scorer import RemoteScorer
from penstock.deploy.scorers import facts_of_process
from penstock.deploy.transport import Route
from penstock.rollout.config import EngineSection, RolloutSection
from penstock.services.contracts import DeadlinePassed, PenstockError
from penstock.services.data_config import DataSection
from penstock.services.model_config import ModelSection
from penstock.services.staleness import Outlived
from penstock.services.store.connection import StoreAddress

if TYPE_CHECKING:
    from penstock.rollout.evaluation import EvaluationJob, EvaluationReport
    from penstock.rollout.worker import RolloutWorker


@dataclass(frozen=True)
class RolloutPlan:
    """What every rollout worker must know, the same for all."""

    model: ModelSection
    data: DataSection
    rollout: RolloutSection
    engine: EngineSection
    outlived: Outlived
    max_lag: int
    quorum: int
    """Scored answers that the algorithm needs of a group."""
    start: str
    """Names this start of the run, so that a resumed engine does not draw the numbers it drew before."""
    store: StoreAddress
    route: Route
    """How weights come here."""
    seed: int
    export: Export | None
    """How metrics are exported; None when they are not."""


Scorers = tuple[int, dict[str, Any]]
"""The number of a set of scorers, and their handles by name."""


class RolloutActor:
    """`RolloutWorker` with a vLLM engine, in a process of its own."""

    def __init__(self, name: str, restarts: int, log: Path, plan: RolloutPlan, scorers: Scorers, learner: Any) -> None:
        """`learner` is rank 0, where weights come from on some routes."""
        begin_life(log)
        from penstock.deploy.assemble import build_generator, build_stream
        from penstock.services.models import load_tokenizer

        self.name, self._life, self._plan, self._learner = name, restarts, plan, learner
        number, actors = scorers
        self._scorer = RemoteScorer(actors, number)
        self._tokenizer = load_tokenizer(plan.model)
        self._receiver: Any = plan.route.receiver(plan.engine.tensor_parallel, lambda: self._learner)
        self._worker: RolloutWorker | None = None
        self._begun = threading.Event()
        self._told: list[Callable[[RolloutWorker], None]] = []  # before there was a worker to be told
        self._telling = threading.Lock()
        self._joins: float | None = None
        # Now and not in `run`: whoever joins would lose that time. Before the engine, which would have to be closed.
        self._idle = "opening the data"
        export_actor(plan.export, "rollout", name, self._doing)
        self._stream = build_stream(plan.data, self._tokenizer, plan.seed)
        self._idle = "starting the engine"
        self._generator = build_generator(name, restarts, plan, self._tokenizer, self._receiver)
        self._idle = "ready"

    def ready(self) -> dict[str, Any]:
        """Answers once the engine has started."""
        return facts_of_process()

    def run(self) -> dict[str, Any]:
        """Join the run, which the store must know by now; generate until drained. Returns the last of its `stats`;
        the process is of no more use then."""
        from penstock.deploy.assemble import build_worker

        self._joins = time.monotonic()
        try:
            parts = self._generator, self._tokenizer, self._stream, self._scorer
            worker = build_worker(self.name, self._life, self._plan, *parts)
            with self._telling:
                self._worker = worker
                for word in self._told:
                    word(worker)
            self._begun.set()
            worker.run()
            if self._plan.engine.tensor_parallel > 1:
                self._generator.close()  # what is in this process ends with it, and to free that first takes a second
            return self.stats()
        except BaseException:
            self._begun.set()
            self._generator.close()  # whoever takes its place needs the memory
            raise

    def relay(self, method: str, arguments: dict[str, Any]) -> None:
        """A call of the learner's sender, executed by the thread that owns the engine while it swaps."""
        self._receiver.relay.call(method, arguments)

    def use_learner(self, learner: Any) -> None:
        """Rank 0 was started again: weights come from there now."""
        self._learner = learner

    def use_scorers(self, number: int, actors: dict[str, Any]) -> None:
        """Give groups to these scorers from now on; see `RemoteScorer.use`."""
        self._scorer.use(number, actors)

    def stats(self) -> dict[str, Any]:
        """What the worker is doing, in numbers, and as spans since the last call."""
        return self._doing() | {"spans": self._worker.spans() if self._worker is not None else []}

    def _doing(self) -> dict[str, Any]:
        """The same without what is told once: others than the supervisor ask too."""
        said: dict[str, Any] = dict(self._worker.stats()) if self._worker is not None else {"phase": self._idle}
        return {
            "silent": time.monotonic() - self._joins if self._joins is not None else 0.0,
            **said,
            "doing": said["phase"],
            "scorers": self._scorer.holdings(),
            **resident(),
        }

    def evaluate(self, job: EvaluationJob) -> EvaluationReport:
        """Measure the policy beside training; waits for the result."""
        return self._playing(job.deadline).evaluate(job).result(timeout=job.deadline)

    def request_drain(self) -> None:
        """Hand back what is unfinished and end `run`."""
        self._tell(lambda worker: worker.request_drain())

    def set_max_lag(self, bound: int) -> None:
        """Judge by another bound what has become too old."""
        self._tell(lambda worker: worker.set_max_lag(bound))

    def _tell(self, word: Callable[[RolloutWorker], None]) -> None:
        """At once, or as soon as there is a worker: joining may take as long as the store is away."""
        with self._telling:
            if self._worker is None:
                self._told.append(word)
            else:
                word(self._worker)

    def _playing(self, deadline: float) -> RolloutWorker:
        """The worker, which is built in the first moments of `run`. Raises DeadlinePassed, and PenstockError when it
        could not be built."""
        if not self._begun.wait(deadline):
            raise DeadlinePassed(f"waited {deadline:.0f} s for {self.name} to join the run; `run` was not called")
        if self._worker is None:
            raise PenstockError(f"{self.name} could not join the run; its log says why")
        return self._worker


def start_worker(
    name: str, log: Path, options: dict[str, Any], plan: RolloutPlan, scorers: Scorers, learner: Any, restarts: int
) -> Any:
    """A worker's handle; it is still starting."""
    actor = ray.remote(RolloutActor).options(max_concurrency=8, **options)
    return actor.remote(name, restarts, log, plan, scorers, learner)
