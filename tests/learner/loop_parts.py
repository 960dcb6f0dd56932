"""The learner's loop on the real engine, with the ledger in memory and a worker that samples for it."""

from __future__ import annotations

import numpy as np
from learner_parts import Worker, tiny_model

from penstock.learner.config import (
    AlgorithmSection,
    ArchiveSection,
    CheckpointSection,
    LearnerSection,
    StalenessSection,
)
from penstock.services.replay import LedgerRules


def loop_of(
    team,
    store,
    sender,
    folder,
    *,
    steps,
    learner=None,
    staleness=None,
    resume=None,
    reports=None,
    archive=None,
    checkpoint=None,
    auditor=None,
    **cells,
):
    from penstock.learner.algorithms.bound import bind
    from penstock.learner.crew import Crew
    from penstock.learner.critic import ValueModel
    from penstock.learner.engine import Engine
    from penstock.learner.engines import Engines
    from penstock.learner.loop import LearnerLoop, LoopSettings
    from penstock.services.logprob_model import LogprobModel

    learner = LearnerSection(**({"groups_per_step": 4, "learning_rate": 1e-2} | (learner or {})))
    staleness = StalenessSection(**({"max_lag": 1, "take_deadline": 60.0} | (staleness or {})))
    section = AlgorithmSection.model_validate({"name": "grpo", **cells})
    algorithm = bind(section)
    engine = Engine(LogprobModel(tiny_model(), value_head=section.value.kind == "head"), learner, 1)
    critic = Engine(ValueModel(tiny_model(1).base_model), learner, 1) if section.value.kind == "own" else None
    if resume is not None:
        engine.load(resume.folder)
    settings = LoopSettings(
        learner=learner,
        algorithm=section,
        staleness=staleness,
        checkpoint=CheckpointSection(**({"every": 3, "keep_last": 2, "with_model": False} | (checkpoint or {}))),
        archive=ArchiveSection(**({"every": 2} | (archive or {}))),
        checkpoints=folder / "checkpoints",
        archives=folder / "archive",
        nonfinite=folder / "nonfinite",
        model=folder / "model",
        config_hash="abc",
        request=f"start-{resume.version if resume else 0}",
        resume=resume,
    )
    if resume is None:
        store.attach(LedgerRules(staleness.max_lag, 4, None, 10**8))
    saved = []
    loop = LearnerLoop(
        Crew(team, Engines(engine, critic, 1e-2), algorithm, learner),
        store,
        sender,
        algorithm,
        settings,
        save_model=lambda folder, weights: saved.append((folder, weights)),
        report=(reports if reports is not None else []).append,
        should_stop=lambda step, tokens: "steps" if step >= steps else "",
        auditor=auditor,
    )
    loop.saved = saved
    return loop


def many_small_tokens(tokens):
    return float(np.mean(tokens < 16))


def run_with_worker(loop, store, sender, reward=many_small_tokens, quorum=0):
    worker = Worker(store, sender, reward)
    worker.quorum = quorum
    worker.start()
    try:
        return loop.run()
    finally:
        worker.stop.set()
        worker.join(10)
