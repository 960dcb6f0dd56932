"""Audits: what each bracket of the log-ratio is, against plain forward passes with the weights concerned."""

from __future__ import annotations

import builders
import numpy as np
import pytest
import torch
from learner_parts import MemorySender, tiny_model
from loop_parts import loop_of, run_with_worker

from penstock.learner import archive
from penstock.learner.audit import Auditor, split
from penstock.learner.config import AuditSection
from penstock.learner.metrics import METRICS
from penstock.services.logprob_model import LogprobModel
from penstock.services.metrics import describe
from penstock.services.store.memory import MemoryStore
from penstock.services.versions import Version


def batch_of(sampler, learner, lags, mask=None):
    count = len(sampler)
    return builders.batch_of(
        count,
        1,
        prompt_tokens=np.ones(1, np.int32),
        prompt_lengths=np.array([1]),
        tokens=np.ones(count, np.int32),
        lengths=np.array([count]),
        mask=np.ones(count, np.bool_) if mask is None else np.array(mask),
        logp_sampler=np.array(sampler, np.float32),
        logp_learner=np.array(learner, np.float32),
        lags=np.array(lags, np.int32),
    )


def test_the_brackets_by_hand():
    # Token by token: sampler, the weights that sampled, start of the step, after it.
    sampler, trained = [-1.0, -2.0, -0.5], np.array([-1.0, -2.25, -0.5])
    prox, updated = np.array([-1.0, -2.0, -1.0]), np.array([-0.5, -2.0, -1.0])
    metrics = split(batch_of(sampler, prox, [0, 1, 1]), updated, prox, trained)
    assert metrics["audit/tokens"] == 3
    assert metrics["audit/update_mean"] == pytest.approx(0.5 / 3)
    assert metrics["audit/staleness_mean"] == pytest.approx(0.75 / 3)
    assert metrics["audit/mismatch_mean"] == pytest.approx(0.25 / 3)
    # k1 = −x and k3 = eˣ − 1 − x of each bracket x, on tokens of the earlier policy.
    assert metrics["kl/staleness/k1"] == pytest.approx((-0.25 + 0.5) / 3)
    by_hand = (np.exp(0.25) - 1 - 0.25 + np.exp(-0.5) - 1 + 0.5) / 3
    assert metrics["kl/staleness"] == pytest.approx(by_hand)
    assert metrics["kl/staleness/lag_0/k3"] == 0
    assert metrics["kl/staleness/lag_1/k3"] == pytest.approx(by_hand * 3 / 2)
    assert metrics["kl/mismatch"] == pytest.approx((np.exp(-0.25) - 1 + 0.25) / 3)
    assert metrics["kl/update_audited"] == pytest.approx((np.exp(0.5) - 1 - 0.5) / 3)
    assert metrics["kl/update_audited/k1"] == pytest.approx(-0.5 / 3)
    assert metrics["audit/residual"] == pytest.approx(0, abs=1e-7)


def test_the_residual_is_what_the_train_step_saw_otherwise():
    prox = np.array([-1.0, -2.0])
    metrics = split(batch_of([-1.0, -1.0], [-1.0, -2.125], [0, 0]), prox, prox, prox)
    assert metrics["audit/residual"] == pytest.approx(0.125)


def test_tokens_that_do_not_count_or_whose_weights_are_gone_or_are_out_of_range_are_left_out():
    prox = np.array([-1.0, np.nan, -1.0, -95.0])
    trained = np.array([-1.0, np.nan, np.nan, -1.0])
    batch = batch_of([-1.0, np.nan, -1.0, -1.0], prox, [0, 0, 3, 1], [True, False, True, True])
    metrics = split(batch, prox, prox, trained)
    assert (metrics["audit/tokens"], metrics["audit/missing"], metrics["audit/out_of_range"]) == (1, 1, 1)
    assert metrics["kl/staleness"] == metrics["kl/mismatch"] == metrics["audit/residual"] == 0


def test_an_audit_without_a_token_left_has_only_counts():
    nan = np.array([np.nan])
    metrics = split(batch_of([-1.0], [-1.0], [5]), nan, nan, nan)
    assert metrics == {"audit/tokens": 0, "audit/missing": 1, "audit/out_of_range": 0}


class Remembering(MemorySender):
    """Deletes like any other, and remembers for the test."""

    def __init__(self):
        super().__init__()
        self.ever = {}
        self.most = 0

    def publish(self, version, tensors, probe=None):
        super().publish(version, tensors, probe)
        self.ever[version] = self.versions[version]
        self.most = max(self.most, len(self.versions))


def plain(weights, batch):
    """[N] log-probs, one row at a time, without padding."""
    model = tiny_model()
    model.load_state_dict(weights, strict=False)
    found = []
    for prompt, answer in batch.rows():
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].double()
        found.append(logits.log_softmax(-1)[range(len(answer)), answer.tolist()].numpy())
    return np.concatenate(found)


@pytest.fixture(scope="module")
def audited(team, tmp_path_factory):
    """(archive, reports, sender, store) of a run at max_lag 2 whose every step is audited in whole."""
    folder = tmp_path_factory.mktemp("audit")
    store, sender, reports = MemoryStore(), Remembering(), []
    auditor = Auditor(
        AuditSection(every=1, sequences=1000), sender, lambda: LogprobModel(tiny_model(5)), torch.device("cpu"), 64
    )
    loop = loop_of(
        team,
        store,
        sender,
        folder,
        steps=6,
        staleness={"max_lag": 2},
        archive={"every": 1},
        reports=reports,
        auditor=auditor,
    )
    assert run_with_worker(loop, store, sender) == "steps"
    return folder / "archive", [r["metrics"] for r in reports if r["kind"] == "step"], sender, store


@pytest.mark.engine
def test_the_parts_are_those_of_plain_forward_passes(audited):
    archives, metrics, sender, _ = audited
    assert len(archive.steps(archives)) == len(metrics) == 6
    for number, step in enumerate(archive.steps(archives)):
        _, batch, _ = archive.read(step)
        found, counted = metrics[number], batch.mask
        sampled = [Version(*v) for v in zip(batch.sampled_lineages.tolist(), batch.sampled_steps.tolist(), strict=True)]
        under = {version: plain(sender.ever[version], batch) for version in {*sampled}}
        trained = np.array([under[version][token] for token, version in enumerate(sampled)])
        prox = plain(sender.ever[Version(0, number)], batch)
        after = plain(sender.ever[Version(0, number + 1)], batch)
        brackets = {
            "kl/staleness": (prox - trained)[counted],
            "kl/mismatch": (trained - batch.logp_sampler)[counted],
            "kl/update_audited": (after - prox)[counted],
        }
        for name, bracket in brackets.items():
            assert found[name] == pytest.approx(np.mean(np.exp(bracket) - 1 - bracket), rel=1e-3, abs=1e-9), name
            assert found[f"{name}/k1"] == pytest.approx(-bracket.mean(), rel=1e-3, abs=1e-6), name
        assert found["audit/tokens"] == counted.sum()
        assert found["audit/missing"] == 0
        assert found["audit/residual"] < 2e-5


@pytest.mark.engine
def test_staleness_shows_where_there_is_lag_and_mismatch_stays_at_rounding(audited):
    _, metrics, _, _ = audited
    assert max(m["off_policy/max"] for m in metrics) >= 1
    for m in metrics:
        assert m["kl/mismatch"] < 1e-8
        assert m.get("kl/staleness/lag_0/k3", 0.0) == 0.0
        assert (m["kl/staleness"] > 0) == (m["off_policy/max"] > 0)
        assert m["kl/update_audited"] > 0
        # Both brackets together are what is always measured.
        if m["off_policy/max"] == 0:
            assert m["kl/offpolicy"] < 1e-8
    assert all(describe(name, METRICS) for name in metrics[-1]), metrics[-1].keys()


@pytest.mark.engine
def test_versions_that_an_audit_may_ask_for_stay_and_no_others(audited):
    _, _, sender, store = audited
    assert sender.most == 5  # max_lag + 2, and the one that has just come
    assert store.pinned() == {Version(0, step) for step in (3, 4, 5, 6)}
