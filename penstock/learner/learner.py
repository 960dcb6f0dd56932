"""One rank of the learner as a plain object: built from values, run in a thread, asked from others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.learner import checkpoints
from penstock.learner.config import (
    AlgorithmSection,
    ArchiveSection,
    CheckpointSection,
    LearnerSection,
    StalenessSection,
)
from penstock.services.contracts import ReplayStore, WeightSender
from penstock.services.model_config import ModelSection


@dataclass(frozen=True)
class LearnerPlan:
    """What every rank must know, the same on all of them."""

    model: ModelSection
    learner: LearnerSection
    algorithm: AlgorithmSection
    staleness: StalenessSection
    checkpoint: CheckpointSection
    archive: ArchiveSection
    meet_at: str
    """`host:port` on rank 0's machine, where the ranks find each other."""
    checkpoints: Path
    archives: Path
    model_folder: Path
    """Where the trained model goes at the end."""
    config_hash: str
    request: str
    """Names this start of the learner; a new one for every start."""
    resume: Path | None = None
    """Folder of the checkpoint to go on from."""
    threads: int | None = None
    """Threads of torch in this process; None leaves torch's choice."""
    samples: int = 4
    """Trajectories per step in the reports."""


@dataclass(frozen=True)
class Health:
    """What a rank is doing, for the supervisor."""

    rank: int
    state: str
    """starting, running, ended or failed."""
    doing: str
    beat: float
    """Unix seconds of the last sign of life; a rank that compiles or saves may be silent for minutes."""
    version: str
    error: str = ""


class LearnerRank:
    """Rank `rank` of the learner. Rank 0 also needs the store and the sender of weights.

    `run()` blocks until the run ends; everything else may be called from other threads meanwhile.
    """

    def __init__(
        self,
        rank: int,
        plan: LearnerPlan,
        store: ReplayStore | None = None,
        sender: WeightSender | None = None,
        should_stop: Callable[[int, int], str] | None = None,
    ) -> None:
        if rank == 0 and (store is None or sender is None):
            raise ValueError("rank 0 of the learner takes from the store and publishes weights: it needs both")
        self._rank, self._plan = rank, plan
        self._store, self._sender = store, sender
        self._limits = should_stop
        self._lock = threading.Lock()
        self._reports: list[dict[str, Any]] = []
        self._stop_why = ""
        self._state, self._doing, self._beat_at, self._error = "starting", "starting", time.time(), ""
        self._loop: Any = None

    def run(self) -> str:
        """Meet the others, load the model, train until there is a reason to stop; returns the reason.

        A follower returns an empty text when rank 0 has ended. Raises what ended the run otherwise.
        """
        try:
            why = self._run()
        except BaseException as error:
            self._error = f"{type(error).__name__}: {error}"
            self._state = "failed"
            raise
        self._state = "ended"
        return why

    def _run(self) -> str:
        import torch

        from penstock.learner import ranks
        from penstock.learner.algorithms.bound import bind
        from penstock.learner.crew import Crew
        from penstock.learner.engine import Engine
        from penstock.learner.loop import LearnerLoop, LoopSettings
        from penstock.services.models import load_model, load_tokenizer, save_model

        plan = self._plan
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        resume = checkpoints.read(plan.resume) if plan.resume is not None else None
        if resume is not None:
            checkpoints.must_fit(resume, plan.learner.ranks, plan.learner.zero_stage, plan.learner.dtype)
        self._beat("meeting the other ranks")
        team = ranks.join(self._rank, plan.learner.ranks, plan.meet_at, plan.learner.collective_timeout)
        self._beat("loading the model")
        engine = Engine(load_model(plan.model, "float32"), plan.learner, team.size)
        if resume is not None:
            self._beat("loading the checkpoint")
            engine.load(resume.folder)
        algorithm = bind(plan.algorithm)
        crew = Crew(team, engine, algorithm, plan.learner, self._beat)
        self._state = "running"
        if self._rank > 0:
            crew.follow()
            return ""
        assert self._store is not None and self._sender is not None, "checked in the constructor"
        tokenizer = load_tokenizer(plan.model)
        settings = LoopSettings(
            learner=plan.learner,
            staleness=plan.staleness,
            checkpoint=plan.checkpoint,
            archive=plan.archive,
            checkpoints=plan.checkpoints,
            archives=plan.archives,
            model=plan.model_folder,
            config_hash=plan.config_hash,
            request=plan.request,
            resume=resume,
            samples=plan.samples,
        )
        self._loop = LearnerLoop(
            crew,
            self._store,
            self._sender,
            algorithm,
            settings,
            save_model=lambda folder, weights: save_model(engine.module, tokenizer, folder, weights),
            report=self._keep,
            should_stop=self._should_stop,
            beat=self._beat,
        )
        return str(self._loop.run())

    # --- asked from other threads -------------------------------------------------------------------

    def reports(self) -> list[dict[str, Any]]:
        """Everything reported since the last call, oldest first; plain values."""
        with self._lock:
            reports, self._reports = self._reports, []
        return reports

    def request_stop(self, why: str) -> None:
        """End after this step, with a checkpoint and the model on disk."""
        self._stop_why = self._stop_why or why

    def request_checkpoint(self) -> None:
        """Write a checkpoint at the end of this step."""
        if self._loop is not None:
            self._loop.request_checkpoint()

    def observe(self, metrics: dict[str, float]) -> None:
        """Metrics measured elsewhere (an evaluation), for `checkpoint.keep_best`."""
        if self._loop is not None:
            self._loop.observe(metrics)

    def health(self) -> Health:
        """What this rank is doing."""
        version = str(self._loop.version) if self._loop is not None else ""
        return Health(self._rank, self._state, self._doing, self._beat_at, version, self._error)

    # --- told by the loop ---------------------------------------------------------------------------

    def _beat(self, doing: str) -> None:
        self._doing, self._beat_at = doing, time.time()

    def _keep(self, report: dict[str, Any]) -> None:
        with self._lock:
            self._reports.append(report)

    def _should_stop(self, step: int, tokens: int) -> str:
        return self._stop_why or (self._limits(step, tokens) if self._limits is not None else "")
