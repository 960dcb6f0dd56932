"""One rank of the learner as a plain object: builds its parts from values and runs the loop, or follows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.learner import checkpoints
from penstock.learner.config import (
    AlgorithmSection,
    ArchiveSection,
    AuditSection,
    CheckpointSection,
    LearnerSection,
    StalenessSection,
)
from penstock.learner.rank import Rank
from penstock.learner.requests import Requests
from penstock.services.contracts import PenstockError, WeightReceiver, WeightSender
from penstock.services.model_config import ModelSection
from penstock.services.replay import ReplayStore
from penstock.services.versions import Version

if TYPE_CHECKING:
    from penstock.learner.audit import Auditor
    from penstock.learner.crew import Crew
    from penstock.learner.loop import LearnerLoop


@dataclass(frozen=True)
class LearnerPlan:
    """What every rank must know, the same on all of them."""

    model: ModelSection
    learner: LearnerSection
    algorithm: AlgorithmSection
    staleness: StalenessSection
    checkpoint: CheckpointSection
    archive: ArchiveSection
    audit: AuditSection
    meet_at: str
    """`host:port` on rank 0's machine, where the ranks find each other."""
    checkpoints: Path
    archives: Path
    nonfinite: Path
    """Where batches of skipped steps go."""
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
    samples_every: int = 1
    """Steps between such reports."""
    sample_tokens: int = 512
    """Tokens of such a trajectory that are reported with their numbers."""
    seed: int = 0
    """Of the run; the learner's own is added to it."""


class LearnerRank(Rank):
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
        receiver: WeightReceiver | None = None,
    ) -> None:
        """`receiver` reads published weights back, for audits; only rank 0 needs one, and only with audits."""
        if rank == 0 and (store is None or sender is None):
            raise ValueError("rank 0 of the learner takes from the store and publishes weights: it needs both")
        super().__init__(rank)
        self._requests = Requests()
        self._plan = plan
        self._store, self._sender = store, sender
        self._limits, self._receiver = should_stop, receiver
        self._loop: LearnerLoop | None = None

    def _run(self) -> str:
        import torch

        from penstock.learner import engines, ranks
        from penstock.learner.algorithms.bound import bind
        from penstock.learner.crew import Crew
        from penstock.learner.loop import LearnerLoop
        from penstock.learner.loop_settings import LoopSettings
        from penstock.learner.universal import restore
        from penstock.services.models import load_tokenizer, save_model
        from penstock.services.token_texts import texts_by

        plan = self._plan
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        resume = checkpoints.read(plan.resume) if plan.resume is not None else None
        if resume is not None:
            checkpoints.must_fit(resume, plan.learner.stage(plan.learner.ranks), plan.learner.dtype)
        self._beat("meeting the other ranks")
        team = ranks.join(self._rank, plan.learner.ranks, plan.meet_at, plan.learner.collective_timeout)
        self._beat("loading the model")
        built = engines.build(plan.model, plan.learner, plan.algorithm.value)
        if resume is not None:
            self._beat("loading the checkpoint")
            restore(built, team, resume.folder, self._beat)
            self._beat("loaded the checkpoint")
        algorithm = bind(plan.algorithm)
        crew = Crew(team, built, algorithm, plan.learner, self._beat)
        self._running()
        if self._rank > 0:
            crew.follow()
            return ""
        assert self._store is not None and self._sender is not None, "checked in the constructor"
        tokenizer = load_tokenizer(plan.model)
        settings = LoopSettings(
            learner=plan.learner,
            algorithm=plan.algorithm,
            staleness=plan.staleness,
            checkpoint=plan.checkpoint,
            archive=plan.archive,
            checkpoints=plan.checkpoints,
            archives=plan.archives,
            nonfinite=plan.nonfinite,
            model=plan.model_folder,
            config_hash=plan.config_hash,
            request=plan.request,
            resume=resume,
            samples=plan.samples,
            samples_every=plan.samples_every,
            sample_tokens=plan.sample_tokens,
            seed=plan.seed + plan.learner.seed,
        )
        self._loop = LearnerLoop(
            crew,
            self._store,
            self._sender,
            algorithm,
            settings,
            save_model=lambda folder, weights: save_model(crew.engine.module, tokenizer, folder, weights),
            report=self._keep,
            should_stop=self._should_stop,
            beat=self._beat,
            auditor=self._auditor(crew),
            texts=partial(texts_by, tokenizer),
            requests=self._requests,
        )
        return self._loop.run()

    def _auditor(self, crew: Crew) -> Auditor | None:
        """What measures the exact parts of the log-ratio; None where no step is to be audited."""
        from penstock.learner.audit import Auditor
        from penstock.services.logprob_model import LogprobModel
        from penstock.services.models import load_model

        plan, receiver = self._plan, self._receiver
        if plan.audit.every == 0:
            return None
        if receiver is None:
            raise PenstockError(
                "audits read published weights back, and between GPUs (nccl, ipc) there is nothing to read; "
                "set audit.every=0, or weights.transport to shm or file"
            )
        return Auditor(
            plan.audit,
            receiver,
            lambda: LogprobModel(load_model(plan.model, plan.learner.dtype)),
            crew.engine.device,
            plan.learner.micro_batch_tokens,
            plan.seed,
        )

    # --- asked from other threads, also before the loop has begun -----------------------------------

    def request_checkpoint(self) -> None:
        """Write a checkpoint at the end of this step."""
        self._requests.checkpoint = True

    def request_pause(self, paused: bool, number: int) -> None:
        """Begin no train step until it is asked for again with False."""
        self._requests.pause(paused, number)

    def request_turn(self, changes: Mapping[str, float], number: int) -> None:
        """Train with these coefficients from the next step on; names as in `dials`, values that were checked there."""
        self._requests.turn(changes, number)

    def request_roll_back(self, step: int, lineage: int) -> None:
        """Go back to the newest checkpoint of at most `step`, while `lineage` is the one that is trained."""
        self._requests.roll_back(step, lineage)

    def observe(self, version: Version, metrics: dict[str, float]) -> None:
        """Metrics of `version` measured elsewhere (an evaluation), for `checkpoints.keep_best`."""
        if self._loop is not None:
            self._loop.observe(version, metrics)

    @property
    def version(self) -> str:
        return str(self._loop.version) if self._loop is not None else ""

    def _should_stop(self, step: int, tokens: int) -> str:
        return self._stop_why or (self._limits(step, tokens) if self._limits is not None else "")
