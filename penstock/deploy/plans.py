"""From the run file to what each role is told: pure translation, nothing is started here."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

from penstock.deploy.exporter import Export
from penstock.deploy.learners import StepLimits
from penstock.deploy.rollouts import RolloutPlan
from penstock.deploy.runfile import RunFile
from penstock.deploy.transport import Route
from penstock.learner.learner import LearnerPlan
from penstock.services.replay import LedgerRules
from penstock.services.rundir import RunDir
from penstock.services.store.connection import StoreAddress


def ledger_rules(run_file: RunFile, prompts: int | None) -> LedgerRules:
    """What the store must know; `prompts` is the length of the stream, None without end."""
    return LedgerRules(
        max_lag=run_file.staleness.first_lag,
        groups_per_step=run_file.learner.groups_per_step,
        prompts=prompts,
        max_bytes=run_file.store.max_bytes,
    )


def export(run_file: RunFile, directory: RunDir) -> Export | None:
    """What every process must know to export metrics; None when it shall not."""
    tracking = run_file.tracking
    return Export(directory.path.name, tracking.prometheus_seconds) if tracking.prometheus else None


def rollout_plan(
    run_file: RunFile, directory: RunDir, store: StoreAddress, route: Route, resume: Path | None
) -> RolloutPlan:
    """The same for all rollout workers."""
    return RolloutPlan(
        model=run_file.model,
        data=run_file.data,
        rollout=run_file.rollout,
        engine=run_file.engine,
        outlived=run_file.staleness.outlived,
        max_lag=run_file.staleness.first_lag,
        quorum=run_file.algorithm.quorum,
        start=resume.name if resume else "",
        store=store,
        route=route,
        seed=run_file.seed,
        export=export(run_file, directory),
    )


def learner_plan(run_file: RunFile, directory: RunDir, resume: Path | None) -> LearnerPlan:
    """The same for all ranks; where they meet is filled in when rank 0 knows its address."""
    return LearnerPlan(
        model=run_file.model,
        learner=run_file.learner.model_copy(update={"seed": run_file.seed + run_file.learner.seed}),
        algorithm=run_file.algorithm.for_answers_of(run_file.rollout.sampling.max_tokens),
        staleness=run_file.staleness,
        checkpoint=run_file.checkpoints,
        archive=run_file.archive,
        audit=run_file.audit,
        meet_at="",
        checkpoints=directory.checkpoints,
        archives=directory.archive,
        nonfinite=directory.nonfinite,
        model_folder=directory.model,
        config_hash=hashlib.sha256(run_file.to_yaml().encode()).hexdigest()[:16],
        request=uuid.uuid4().hex,
        resume=resume,
        threads=run_file.placement.learner_threads,
        samples=run_file.recording.samples,
        samples_every=run_file.recording.samples_every,
        sample_tokens=run_file.recording.sample_tokens,
    )


def step_limits(run_file: RunFile) -> StepLimits:
    """The limits that are exact and so kept by the learner's loop."""
    return StepLimits(run_file.limits.steps, run_file.limits.tokens)
