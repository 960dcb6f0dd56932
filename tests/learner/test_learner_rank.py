"""Two ranks as the supervisor runs them: a whole run, a silence longer than the collective timeout, a resume."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_parts import MemorySender, Worker, model_folder, on_two_ranks
from transformers import AutoModelForCausalLM, AutoTokenizer

from penstock.learner import archive, checkpoints
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
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import sequence_logprobs
from penstock.services.model_config import ModelSection
from penstock.services.replay import LedgerRules
from penstock.services.store.memory import MemoryStore
from penstock.services.versions import Version

pytestmark = pytest.mark.engine


def plan(folder: Path, address: str, request: str, resume=None) -> LearnerPlan:
    return LearnerPlan(
        model=ModelSection(path=str(folder / "start")),
        learner=LearnerSection(
            ranks=2,
            zero_stage=3,
            groups_per_step=4,
            mini_batches=2,
            epochs=2,
            micro_batch_tokens=32,
            learning_rate=3e-3,
            collective_timeout=10.0,
        ),
        algorithm=AlgorithmSection(),
        staleness=StalenessSection(max_lag=1, take_deadline=120.0),
        checkpoint=CheckpointSection(every=2, keep_last=1, keep_best="reward/mean"),
        archive=ArchiveSection(every=2, keep_last=1, weights=True),
        audit=AuditSection(every=2, sequences=4),
        meet_at=address,
        checkpoints=folder / "checkpoints",
        archives=folder / "archive",
        nonfinite=folder / "nonfinite",
        model_folder=folder / "model",
        config_hash="abc",
        request=request,
        resume=resume,
        threads=1,
    )


def one_rank(rank, address, folder):
    """One process: a run of four steps, then a second run that goes on from its checkpoint."""
    folder = Path(folder)
    store, sender = MemoryStore(), MemorySender()
    found = {}
    for number in (0, 1):
        resume = None
        if number == 1:
            resume = checkpoints.latest(folder / "checkpoints").folder
        steps = (4, 6)[number]
        worker = Worker(store, sender, lambda tokens: float(np.mean(tokens < 16)))
        learner = LearnerRank(
            rank,
            plan(folder, address, f"start-{number}", resume),
            store if rank == 0 else None,
            sender if rank == 0 else None,
            lambda step, tokens, steps=steps: "limits.steps" if step >= steps else "",
            sender if rank == 0 else None,
        )
        if rank == 0:
            if number == 0:
                store.attach(LedgerRules(1, 4, None, 10**8))
                # The first groups come later than the collective timeout: idle ticks must bridge that.
                store.reserve_later = time.monotonic() + 13.0
                original = store.reserve

                def late(*arguments, original=original):
                    while time.monotonic() < store.reserve_later:
                        time.sleep(0.05)
                    return original(*arguments)

                store.reserve = late
            worker.start()
        why = learner.run()
        worker.stop.set()
        if rank == 0:
            worker.join(10)
            reports = learner.reports()
            counts = store.counts()
            found[number] = {
                "why": why,
                "failure": repr(worker.failure),
                "state": learner.health().state,
                "version": learner.health().version,
                "kinds": [r["kind"] for r in reports],
                "steps": [r["metrics"] for r in reports if r["kind"] == "step"],
                "samples": [r["samples"] for r in reports if r["kind"] == "step"][-1],
                "balanced": counts.balanced,
                "by_state": dict(counts.by_state),
                "published": [str(v) for v in sender.published],
            }
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def run():
    """(folder, what rank 0 found in its two runs)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_folder(folder / "start")
        on_two_ranks(one_rank, folder)
        yield folder, json.loads((folder / "found.json").read_text())


def test_a_run_of_two_ranks_ends_for_its_reason_with_all_steps_reported(run):
    _, found = run
    first = found["0"]
    assert first["failure"] == "None"
    assert (first["why"], first["state"], first["version"]) == ("limits.steps", "ended", "0.4")
    assert first["kinds"] == ["started", "step", "checkpoint", "step", "step", "checkpoint", "step", "ended"]
    assert first["published"] == ["0.0", "0.1", "0.2", "0.3", "0.4"]
    assert first["balanced"]
    assert first["by_state"]["committed"] == 16


def test_several_updates_per_step_move_away_from_the_proximal_policy(run):
    metrics = run[1]["0"]["steps"]
    assert [m["learner/updates"] for m in metrics] == [4.0, 8.0, 12.0, 16.0]
    assert all(m["kl/update"] > 0 for m in metrics)
    assert all(m.get("mismatch/max", 0.0) < 1e-4 for m in metrics)
    assert max(m["off_policy/max"] for m in metrics) <= 1


def test_a_resumed_run_goes_on_in_a_new_lineage_with_its_ledger_balanced(run):
    second = run[1]["1"]
    assert (second["why"], second["version"]) == ("limits.steps", "1.6")
    assert second["published"][5:] == ["1.4", "1.5", "1.6"]
    assert [m["learner/updates"] for m in second["steps"]] == [20.0, 24.0]
    assert second["balanced"]
    assert second["by_state"]["committed"] == 24


def test_samples_show_prompt_answer_reward_and_versions(run):
    sample = run[1]["0"]["samples"][0]
    assert sample["prompt"].startswith("prompt ")
    assert 0 <= sample["reward"] <= 1
    assert len(sample["answer"].split()) == sample["tokens"]


def test_samples_show_their_tokens_with_the_numbers_that_the_archive_has(run):
    folder, found = run
    version, batch, _ = archive.read(archive.steps(folder / "archive")[-1])
    assert version == Version(1, 6)
    rows = {key: row for row, key in enumerate(zip(batch.groups.tolist(), batch.members.tolist(), strict=True))}
    columns = {"tokens": batch.tokens, "logp_sampler": batch.logp_sampler, "logp_learner": batch.logp_learner}
    columns |= {"advantages": batch.advantages}
    assert len(found["1"]["samples"]) == 4
    for sample in found["1"]["samples"]:
        record, row = sample["by_token"], rows[sample["prompt_index"], sample["member"]]
        (stretch,) = record["stretches"]
        assert record["begins_at"] == "1.5"
        assert [s["lag"] for s in record["spans"] for _ in range(s["count"])] == batch.split(batch.lags)[row].tolist()
        assert " ".join(text.strip() for text in stretch["texts"]) == sample["answer"]
        for name, column in columns.items():
            np.testing.assert_allclose(stretch[name], batch.split(column)[row], atol=1e-6)


def test_the_model_at_the_end_loads_and_is_what_the_checkpoint_holds(run):
    folder, _ = run
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert AutoTokenizer.from_pretrained(folder / "model")("1 2 31").input_ids == [1, 2, 31]
    newest = checkpoints.latest(folder / "checkpoints")
    other = AutoModelForCausalLM.from_pretrained(newest.model)
    assert newest.version == Version(1, 6)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    start = AutoModelForCausalLM.from_pretrained(folder / "start")
    assert not torch.equal(next(start.parameters()), next(model.parameters()))


def test_the_archive_holds_every_row_with_the_learners_own_log_probs(run):
    folder, _ = run
    (kept,) = (folder / "archive").iterdir()
    version, batch, facts = archive.read(kept)
    assert version == Version(1, 6)
    assert len(batch) == 16
    fresh = batch.mask & (batch.lags == 0)
    assert np.abs(batch.logp_learner - batch.logp_sampler)[fresh].max(initial=0.0) < 1e-4
    assert facts["learner"]["groups_per_step"] == 4


def test_the_archive_holds_the_whole_weights_of_sharded_ranks(run):
    folder, _ = run
    (kept,) = (folder / "archive").iterdir()
    _, batch, _ = archive.read(kept)
    model = AutoModelForCausalLM.from_pretrained(kept / archive.POLICY)
    expected = sequence_logprobs(LogprobModel(model), batch.rows())
    np.testing.assert_allclose(batch.logp_learner, np.concatenate(expected), atol=1e-5)


def test_audits_of_sharded_ranks_find_what_the_step_has_measured(run):
    for metrics in (run[1]["0"]["steps"][1], run[1]["0"]["steps"][3], run[1]["1"]["steps"][1]):
        assert metrics["audit/sequences"] == 4
        assert metrics["audit/residual"] < 2e-5
        assert metrics["kl/mismatch"] < 1e-8
        assert metrics["kl/update_audited"] > 0


def test_a_checkpoint_of_another_layout_is_refused_with_the_remedy(run):
    newest = checkpoints.latest(run[0] / "checkpoints")
    with pytest.raises(PenstockError, match=r"zero_stage=3, this run has learner\.zero_stage=1.*Resume with"):
        checkpoints.must_fit(newest, 1, "float32")
