"""The learner's loop on the real engine, against the ledger in memory and a worker that samples for it."""

from __future__ import annotations

import numpy as np
import pytest
from learner_parts import MemorySender, Worker, tiny_model

from penstock.learner.config import (
    AlgorithmSection,
    ArchiveSection,
    CheckpointSection,
    LearnerSection,
    StalenessSection,
)
from penstock.services.contracts import LedgerRules
from penstock.services.store.memory import MemoryStore
from penstock.services.versions import Version

pytestmark = pytest.mark.engine


def loop_of(team, store, sender, folder, *, steps, learner=None, staleness=None, resume=None, reports=None, **cells):
    from penstock.learner.algorithms.bound import bind
    from penstock.learner.crew import Crew
    from penstock.learner.engine import Engine
    from penstock.learner.loop import LearnerLoop, LoopSettings

    learner = LearnerSection(groups_per_step=4, learning_rate=1e-2, **(learner or {}))
    staleness = StalenessSection(**({"max_lag": 1, "take_deadline": 60.0} | (staleness or {})))
    algorithm = bind(AlgorithmSection.model_validate({"name": "grpo", **cells}))
    engine = Engine(tiny_model(), learner, 1)
    if resume is not None:
        engine.load(resume.folder)
    settings = LoopSettings(
        learner=learner,
        staleness=staleness,
        checkpoint=CheckpointSection(every=3, keep_last=2, with_model=False),
        archive=ArchiveSection(every=2),
        checkpoints=folder / "checkpoints",
        archives=folder / "archive",
        model=folder / "model",
        config_hash="abc",
        request=f"start-{resume.version if resume else 0}",
        resume=resume,
    )
    if resume is None:
        store.attach(LedgerRules(staleness.max_lag, 4, None, 10**8))
    saved = []
    loop = LearnerLoop(
        Crew(team, engine, algorithm, learner),
        store,
        sender,
        algorithm,
        settings,
        save_model=lambda folder, weights: saved.append((folder, weights)),
        report=(reports if reports is not None else []).append,
        should_stop=lambda step, tokens: "steps" if step >= steps else "",
    )
    loop.saved = saved
    return loop


def many_small_tokens(tokens):
    return float(np.mean(tokens < 16))


@pytest.mark.parametrize("max_lag", [0, 2])
def test_a_run_trains_publishes_and_leaves_a_balanced_ledger(team, tmp_path, max_lag):
    store, sender, reports = MemoryStore(), MemorySender(), []
    worker = Worker(store, sender, many_small_tokens)
    loop = loop_of(
        team,
        store,
        sender,
        tmp_path,
        steps=12,
        staleness={"max_lag": max_lag},
        reports=reports,
        kl={"coefficient": 0.001},
    )
    worker.start()
    why = loop.run()
    worker.stop.set()
    worker.join(10)
    assert worker.failure is None
    assert why == "steps"
    assert sender.published == [Version(0, step) for step in range(13)]
    steps = [r for r in reports if r["kind"] == "step"]
    assert [r["step"] for r in steps] == list(range(1, 13))
    metrics = steps[-1]["metrics"]
    assert max(r["metrics"]["off_policy/max"] for r in steps) <= max_lag
    assert max(r["metrics"].get("mismatch/max", 0.0) for r in steps) < 1e-4
    rewards = [r["metrics"]["reward/mean"] for r in steps]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.1
    assert metrics["kl/reference"] > 0
    assert store.counts().balanced
    assert store.counts().by_state["committed"] == 48
