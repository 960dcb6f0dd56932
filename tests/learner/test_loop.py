"""The learner's loop on the real engine, against the ledger in memory and a worker that samples for it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from learner_parts import MemorySender, Worker, tiny_model
from loop_parts import loop_of, many_small_tokens, run_with_worker

from penstock.learner import archive, checkpoints
from penstock.learner.diagnostics import BUCKETS
from penstock.learner.metrics import METRICS
from penstock.services.contracts import PenstockError
from penstock.services.metrics import describe
from penstock.services.replay import LedgerRules
from penstock.services.store.memory import MemoryStore
from penstock.services.versions import FIRST, Version
from penstock.services.weights.manifest import probe_tokens

pytestmark = pytest.mark.engine


def probe_of(weights):
    """Log-probs of the fixed sequence by a plain forward pass of a model that holds the published weights."""
    model = tiny_model()
    model.load_state_dict(weights, strict=False)
    tokens = torch.tensor([probe_tokens(32)])
    with torch.no_grad():
        logp = model(tokens).logits[:, :-1].log_softmax(-1)
    return logp.gather(2, tokens[:, 1:, None])[0, :, 0].tolist()


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
    newest = sender.published[-1]
    assert probe_of(sender.versions[newest]) == pytest.approx(sender.probes[newest].logprobs, abs=1e-5)
    assert max(r["metrics"]["off_policy/max"] for r in steps) <= max_lag
    assert max(r["metrics"].get("mismatch/max", 0.0) for r in steps) < 1e-4
    rewards = [r["metrics"]["reward/mean"] for r in steps]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.1
    assert metrics["kl/reference"] > 0
    by_lag = [metrics.get(f"off_policy/{bucket}/tokens", 0) for bucket in BUCKETS]
    assert sum(by_lag) == metrics["batch/tokens_in_loss"]
    assert by_lag[max_lag + 1 :] == [0] * (len(BUCKETS) - max_lag - 1)
    assert all(describe(name, METRICS) for name in metrics), metrics.keys()
    assert store.counts().balanced
    assert store.counts().by_state["committed"] == 48


def undefined(logp):
    """A sampler that reports probability 0 for what it drew: the KL estimate of the loss is undefined."""
    return logp * float("nan")


def steep(logp):
    """Zero, so that the loss is a number, with infinite slope."""
    return (logp - logp.detach()).sqrt()


@pytest.mark.parametrize("penalty", [undefined, steep])
def test_a_step_with_undefined_gradients_changes_nothing_and_three_of_them_end_the_run(team, tmp_path, penalty):
    from penstock.learner.loop import NonFinite

    store, sender, reports = MemoryStore(), MemorySender(), []
    loop = loop_of(team, store, sender, tmp_path, steps=5, reports=reports, archive={"every": 1})
    algorithm = loop._crew._algorithm
    object.__setattr__(algorithm, "penalty", lambda logp, *_: penalty(logp))
    object.__setattr__(algorithm, "kl_coefficient", 1.0)
    before = loop._crew.engine.snapshot(wanted=True)
    with pytest.raises(NonFinite, match=r"3 train steps in a row from version 0\.0.*/nonfinite"):
        run_with_worker(loop, store, sender)
    after = loop._crew.engine.snapshot(wanted=True)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [r["kind"] for r in reports] == ["started", "skipped", "skipped", "skipped"]
    for report, folder in zip(reports[1:], archive.steps(tmp_path / "nonfinite"), strict=True):
        assert report["folder"] == str(folder)
        assert [group.prompt.index for group in archive.read_groups(folder)] == list(report["groups"])
        version, batch, facts = archive.read(folder)
        assert (version, facts["applied"], set(batch.groups)) == (Version(0, 1), 0, set(report["groups"]))
        assert np.isfinite(batch.logp_sampler).all()
    assert sender.published == [Version(0, 0)]
    counts = store.counts()
    assert counts.balanced
    assert counts.dropped["nonfinite"] == 12
    (left,) = archive.steps(tmp_path / "archive")
    assert archive.read_facts(left)[1]["applied"] == 0


def test_a_publication_that_fails_ends_the_run_with_its_cause(team, tmp_path):
    store, sender, reports = MemoryStore(), MemorySender(), []
    loop = loop_of(team, store, sender, tmp_path, steps=5, reports=reports)

    def fail_after_the_first(report):
        if report["kind"] == "started":
            sender.failure = OSError("no space left in shared memory")

    loop._report = fail_after_the_first
    with pytest.raises(OSError, match="no space left"):
        run_with_worker(loop, store, sender)
    assert store.counts().balanced


def test_a_full_store_is_relieved_by_a_checkpoint_while_waiting(team, tmp_path):
    store, sender, reports = MemoryStore(), MemorySender(), []
    loop = loop_of(team, store, sender, tmp_path, steps=4, reports=reports)
    # Room for about the groups of one step: applied ones are in the way until a checkpoint holds them.
    store.amend(LedgerRules(1, 4, None, 3500))
    assert run_with_worker(loop, store, sender) == "steps"
    kinds = [r["kind"] for r in reports]
    assert kinds.count("step") == 4
    assert kinds.index("checkpoint") < kinds.index("step", 2)
    assert store.counts().balanced


def test_the_end_of_the_data_ends_the_run_with_checkpoint_and_model(team, tmp_path):
    store, sender, reports = MemoryStore(), MemorySender(), []
    loop = loop_of(team, store, sender, tmp_path, steps=99, reports=reports)
    store.amend(LedgerRules(1, 4, 10, 10**8))
    assert run_with_worker(loop, store, sender) == "data_end"
    assert reports[-1] == reports[-1] | {"kind": "ended", "why": "data_end", "version": "0.2"}
    assert checkpoints.latest(tmp_path / "checkpoints").version == Version(0, 2)
    assert [folder for folder, _ in loop.saved] == [tmp_path / "model"]
    assert "lm_head.weight" not in loop.saved[-1][1]
    counts = store.counts()
    assert counts.balanced
    assert (counts.by_state["committed"], counts.dropped["data_end"]) == (8, 2)


def test_a_checkpoint_after_a_step_and_the_end_use_the_weights_that_were_copied_for_publication(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    loop = loop_of(team, store, sender, tmp_path, steps=4, checkpoint={"every": 2, "with_model": True})
    copies, snapshot = [], loop._crew.snapshot
    loop._crew.snapshot = lambda: copies.append(loop.version) or snapshot()
    assert run_with_worker(loop, store, sender) == "steps"
    assert copies == sender.published == [Version(0, step) for step in range(5)]
    assert [folder.name for folder, _ in loop.saved] == ["model"] * 3
    last = sender.versions[Version(0, 4)]
    for _, weights in loop.saved[1:]:
        assert all(torch.equal(weights[name], last[name]) for name in weights)
    assert not all(torch.equal(loop.saved[0][1][name], last[name]) for name in last)


def test_an_end_that_comes_while_the_learner_waits_copies_the_weights_again(team, tmp_path):
    store, sender = MemoryStore(), MemorySender()
    loop = loop_of(team, store, sender, tmp_path, steps=99)
    store.amend(LedgerRules(1, 4, 4, 10**8))
    copies, snapshot = [], loop._crew.snapshot
    loop._crew.snapshot = lambda: copies.append(loop.version) or snapshot()
    assert run_with_worker(loop, store, sender) == "data_end"
    assert copies == [Version(0, 0), Version(0, 1), Version(0, 1)]
    last = sender.versions[Version(0, 1)]
    assert all(torch.equal(weights, last[name]) for name, weights in loop.saved[-1][1].items())


def test_rewards_that_begin_to_fail_end_the_run_with_their_cause_a_checkpoint_and_the_model(team, tmp_path):
    store, sender, reports = MemoryStore(), MemorySender(), []
    loop = loop_of(team, store, sender, tmp_path, steps=99, reports=reports, staleness={"refill_attempts": 2})

    def reward(tokens):
        return many_small_tokens(tokens) if sender.versions.keys() <= {FIRST, Version(0, 1)} else None

    why = run_with_worker(loop, store, sender, reward, quorum=2)
    assert re.match(r"starved: the rollout workers have dropped \d+ groups in a row \(\d+ unscored\)", why)
    assert "the last cause of unscored: KeyError: 'answer'; the limit is 8 " in why
    assert reports[-1] == reports[-1] | {"kind": "ended", "why": why, "version": str(loop.version)}
    assert loop.version.step >= 2
    assert checkpoints.latest(tmp_path / "checkpoints").version == loop.version
    assert [folder for folder, _ in loop.saved] == [tmp_path / "model"]
    counts = store.counts()
    assert counts.balanced
    assert counts.by_state["committed"] == 4 * loop.version.step
    assert all(r["metrics"]["refused/stale"] == 0 for r in reports if r["kind"] == "step")


def test_a_checkpoint_asked_for_comes_at_the_next_chance(team, tmp_path):
    store, sender, reports = MemoryStore(), MemorySender(), []
    loop = loop_of(team, store, sender, tmp_path, steps=2, reports=reports)
    loop.requests.checkpoint = True
    run_with_worker(loop, store, sender)
    first = next(i for i, r in enumerate(reports) if r["kind"] == "checkpoint")
    assert [r["kind"] for r in reports[:first]].count("step") <= 1


def test_a_checkpoint_knows_the_metrics_of_its_step_and_those_observed_elsewhere(team, tmp_path):
    store, sender, reports = MemoryStore(), MemorySender(), []
    loop = loop_of(team, store, sender, tmp_path, steps=2, reports=reports)
    loop.observe(Version(0, 2), {"eval/accuracy": 0.25})
    loop.observe(Version(0, 1), {"eval/accuracy": 0.75})  # of which there is no checkpoint
    run_with_worker(loop, store, sender)
    loop.observe(Version(0, 2), {"eval/length": 3.0})  # after it was written
    newest = checkpoints.latest(tmp_path / "checkpoints")
    last = [r for r in reports if r["kind"] == "step"][-1]
    assert newest.version == Version(0, 2)
    assert newest.metrics["eval/accuracy"] == 0.25
    assert newest.metrics["eval/length"] == 3.0
    assert newest.metrics["reward/mean"] == last["metrics"]["reward/mean"]
    assert newest.tokens == last["metrics"]["learner/tokens"]


def test_the_archived_batch_is_the_one_that_was_trained_on(team, tmp_path):
    store, sender, reports = MemoryStore(), MemorySender(), []
    loop = loop_of(team, store, sender, tmp_path, steps=2, staleness={"max_lag": 0}, reports=reports)
    run_with_worker(loop, store, sender)
    version, batch, facts = archive.read(tmp_path / "archive" / "step-000002-lineage-0")
    assert version == Version(0, 2)
    metrics = next(r for r in reports if r.get("step") == 2)["metrics"]
    assert len(batch) == metrics["batch/answers"]
    assert int(batch.mask.sum()) == metrics["batch/tokens_in_loss"]
    # On-policy and in one update: every ratio is 1, so the loss is −Σ weight · advantage (· a weight of about 1).
    loss = -float((np.repeat(batch.weights, batch.lengths) * batch.advantages * batch.mask).sum())
    assert metrics["actor/pg_loss"] == pytest.approx(loss, abs=1e-5)
    assert np.abs(batch.logp_learner - batch.logp_sampler).max() < 1e-4
    assert facts["metrics"]["actor/pg_loss"] == metrics["actor/pg_loss"]


@pytest.mark.parametrize("steps", [2, 9])
def test_an_archive_that_cannot_be_written_ends_the_run_but_costs_neither_checkpoint_nor_model(team, tmp_path, steps):
    (tmp_path / "archive").write_text("a file where the folder should be")
    store, sender, reports = MemoryStore(), MemorySender(), []
    loop = loop_of(team, store, sender, tmp_path, steps=steps, reports=reports)
    with pytest.raises(PenstockError, match="could not be archived"):
        run_with_worker(loop, store, sender)
    # Written at step 2: what was trained until it was known, at the latest when step 4 was to be written.
    assert 2 <= loop.version.step <= 4
    assert checkpoints.latest(tmp_path / "checkpoints").version == loop.version
    assert [folder for folder, _ in loop.saved] == [tmp_path / "model"]
    assert [r["kind"] for r in reports].count("step") == loop.version.step
    assert store.counts().balanced
