"""A whole run of PPO on one rank, with a value model, a warm-up, and a resume from a checkpoint."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from learner_parts import MemorySender, Worker, free_address, model_folder

from penstock.learner import checkpoints
from penstock.learner.config import (
    AlgorithmSection,
    ArchiveSection,
    AuditSection,
    CheckpointSection,
    LearnerSection,
    StalenessSection,
)
from penstock.learner.learner import LearnerPlan, LearnerRank
from penstock.services.contracts import PenstockError
from penstock.services.model_config import ModelSection
from penstock.services.replay import LedgerRules
from penstock.services.store.memory import MemoryStore
from penstock.services.versions import Version

pytestmark = pytest.mark.engine


def run(folder, store, sender, name, steps, resume=None):
    """The reports of a run until `steps`."""
    plan = LearnerPlan(
        model=ModelSection(path=str(folder / "start")),
        learner=LearnerSection(groups_per_step=4, mini_batches=2, epochs=2, learning_rate=1e-3),
        algorithm=AlgorithmSection.model_validate(
            {"name": "ppo", "value": {"learning_rate": 1e-2, "warmup_steps": 1}, "credit": {"lam": 1.0}}
        ),
        staleness=StalenessSection(max_lag=1, take_deadline=60.0),
        checkpoint=CheckpointSection(every=2, with_model=False),
        archive=ArchiveSection(),
        audit=AuditSection(),
        meet_at=free_address(),
        checkpoints=folder / "checkpoints",
        archives=folder / "archive",
        nonfinite=folder / "nonfinite",
        model_folder=folder / "model",
        config_hash="abc",
        request=name,
        resume=resume,
        threads=1,
    )
    worker = Worker(store, sender, lambda tokens: float(np.mean(tokens < 16)))
    worker.start()
    learner = LearnerRank(0, plan, store, sender, lambda step, _tokens: "limits.steps" if step >= steps else "")
    assert learner.run() == "limits.steps"
    worker.stop.set()
    worker.join(10)
    assert worker.failure is None
    return learner.reports()


def test_values_warm_up_learn_are_kept_and_come_back(team, tmp_path):
    model_folder(tmp_path / "start")
    store, sender = MemoryStore(), MemorySender()
    sender.retire = lambda keep: []  # so that all versions can be looked at
    store.attach(LedgerRules(1, 4, None, 10**8))
    first = [r["metrics"] for r in run(tmp_path, store, sender, "first", 4) if r["kind"] == "step"]
    assert len(first) == 4
    assert all(math.isfinite(value) for metrics in first for value in metrics.values())
    # Step 1 was the values' alone: the policy published then is the one that the run started from.
    assert all(torch.equal(sender.versions[Version(0, 0)][n], t) for n, t in sender.versions[Version(0, 1)].items())
    assert "actor/grad_norm" not in first[0]
    assert "critic/grad_norm" in first[0]
    assert [m["learner/updates"] for m in first] == [0.0, 4.0, 8.0, 12.0]
    assert "actor/lr" not in first[0]
    assert [m["actor/lr"] for m in first[1:]] == pytest.approx([1e-3] * 3)
    assert [m["critic/lr"] for m in first] == pytest.approx([1e-2] * 4)
    # Of the advantages from values, which are whitened: more than one deviation for some token.
    assert all(m["batch/advantage_max"] > 1 for m in first)
    assert first[0]["critic/value_mean"] == 0
    assert first[3]["critic/value_mean"] > 0.05

    newest = checkpoints.latest(tmp_path / "checkpoints")
    assert (newest.folder / "critic").is_dir()
    second = [r["metrics"] for r in run(tmp_path, store, sender, "second", 5, newest.folder) if r["kind"] == "step"]
    assert [m["learner/updates"] for m in second] == [16.0]
    # A value model from the start would say 0.
    assert second[0]["critic/value_mean"] > 0.05


def test_a_value_model_with_fewer_tokens_than_the_policy_is_refused(team, tmp_path):
    from transformers import Qwen3ForCausalLM

    from penstock.learner.engines import build

    model_folder(tmp_path / "start")
    small = Qwen3ForCausalLM.from_pretrained(tmp_path / "start").config
    small.vocab_size = 16
    Qwen3ForCausalLM(small).save_pretrained(tmp_path / "values")
    algorithm = AlgorithmSection.model_validate({"name": "ppo", "value": {"path": str(tmp_path / "values")}})
    with pytest.raises(PenstockError, match=r"16 tokens.*32"):
        build(ModelSection(path=str(tmp_path / "start")), LearnerSection(), algorithm.value)
