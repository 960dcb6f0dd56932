"""Adaptive coefficients through rank 0's loop, with ranks that say what the test wants to have been measured."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from learner_parts import MemorySender, Worker, tiny_model

from penstock.learner import archive, checkpoints
from penstock.learner.algorithms.bound import KL_COEFFICIENT, OBJECTIVE_COEFFICIENT, Adaptive, ValueUse, bind
from penstock.learner.algorithms.controllers import doubling
from penstock.learner.coefficients import Coefficients
from penstock.learner.config import (
    AlgorithmSection,
    ArchiveSection,
    CheckpointSection,
    LearnerSection,
    StalenessSection,
)
from penstock.learner.crew import Trained
from penstock.learner.loop import LearnerLoop
from penstock.learner.loop_settings import LoopSettings
from penstock.learner.metrics import METRICS
from penstock.services.metrics import describe
from penstock.services.replay import LedgerRules
from penstock.services.store.memory import MemoryStore
from penstock.services.weights.manifest import ProbeRecord, probe_tokens

ADAPTIVE_KL = {
    "name": "grpo",
    "kl": {
        "coefficient": 0.1,
        "placement": "reward",
        "estimator": "k1",
        "controller": {"kind": "doubling", "target": 0.01},
    },
}


DOUBLING = partial(doubling, target=0.1, min_coefficient=1e-6, max_coefficient=1e3)


class ScriptedCrew:
    """Ranks that train nothing and report `script` as the KL, step by step; None is a step that was skipped."""

    def __init__(self, script):
        self.script = list(script)
        self.model = tiny_model()
        self.engine = SimpleNamespace(module=self.model, updates=0)
        self.engines = SimpleNamespace(policy=self.engine, critic=None, has_values=False)
        self.team = SimpleNamespace(size=1)
        self.orders = []

    def train(self, shares, keep_logprobs, coefficients, policy_frozen):
        self.orders.append((dict(coefficients), policy_frozen, shares[0].batch))
        measured = self.script.pop(0)
        found = {} if measured is None else {"kl/reference": measured}
        start = [np.zeros(len(shares[0].batch.tokens), np.float32)] if keep_logprobs else []
        return Trained(applied=int(measured is not None), skipped=0, metrics=found, logp_start=start)

    def snapshot(self):
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def probe(self):
        tokens = probe_tokens(32)
        return ProbeRecord(tokens, tuple(0.0 for _ in tokens[1:]))

    def save(self, folder):
        (folder / "engine").write_text("state")

    def idle(self):
        pass

    def end(self):
        pass


def run(folder, script, steps, cells=ADAPTIVE_KL, resume=None, change=lambda algorithm: algorithm):
    """The crew and the step reports of one run of the loop."""
    learner, staleness = LearnerSection(groups_per_step=2), StalenessSection(max_lag=0, take_deadline=60.0)
    section = AlgorithmSection.model_validate(cells)
    store, sender, crew, reports = MemoryStore(), MemorySender(), ScriptedCrew(script), []
    store.attach(LedgerRules(0, 2, None, 10**8))
    loop_settings = LoopSettings(
        learner=learner,
        algorithm=section,
        staleness=staleness,
        checkpoint=CheckpointSection(every=99, keep_last=2, with_model=False),
        archive=ArchiveSection(every=1, weights=False),
        checkpoints=folder / "checkpoints",
        archives=folder / "archive",
        nonfinite=folder / "nonfinite",
        model=folder / "model",
        config_hash="abc",
        request=f"start-{resume.version if resume else 0}",
        resume=resume,
    )
    loop = LearnerLoop(
        crew,
        store,
        sender,
        change(bind(section)),
        loop_settings,
        save_model=lambda folder, weights: None,
        report=reports.append,
        should_stop=lambda step, tokens: "steps" if step >= steps else "",
    )
    worker = Worker(store, sender, lambda tokens: float(np.mean(tokens < 16)))
    worker.start()
    try:
        assert loop.run() == "steps"
    finally:
        worker.stop.set()
        worker.join(10)
    return crew, [r["metrics"] for r in reports if r["kind"] == "step"]


def test_the_kl_coefficient_doubles_halves_and_stays_by_what_each_step_measured(tmp_path):
    # Above 1.5 × 0.01, above, within, below 0.01 / 1.5, and two steps without a usable measurement.
    crew, steps = run(tmp_path, [0.02, 0.016, 0.012, 0.006, None, math.nan, 0.02], 6)
    trained_with = [order[0][KL_COEFFICIENT] for order in crew.orders]
    assert trained_with == pytest.approx([0.1, 0.2, 0.4, 0.4, 0.2, 0.2, 0.2])
    reported = [step["actor/kl_coefficient"] for step in steps]
    assert reported == pytest.approx([0.1, 0.2, 0.4, 0.4, 0.2, 0.2])
    assert checkpoints.latest(tmp_path / "checkpoints").coefficients == {KL_COEFFICIENT: pytest.approx(0.4)}
    _, _, facts = archive.read(tmp_path / "archive" / "step-000003-lineage-0")[:3]
    assert facts["coefficients"] == {KL_COEFFICIENT: pytest.approx(0.4)}
    assert not [name for name in steps[0] if describe(name, METRICS) is None]


def test_the_kl_is_taken_off_the_reward_with_the_coefficient_of_the_step(tmp_path):
    crew, _ = run(tmp_path, [0.02, 0.02], 2)
    for (_, _, batch), coefficient in zip(crew.orders, (0.1, 0.2), strict=True):
        # The worker's reference is 0.01 nats below the sampler; the task reward falls to the last token.
        inner = np.concatenate([rewards[:-1] for rewards in batch.split(batch.token_rewards)])
        assert inner == pytest.approx(-coefficient * 0.01, rel=1e-3)


def test_a_resumed_run_goes_on_with_the_coefficient_it_had_and_forgets_those_of_other_rows(tmp_path):
    run(tmp_path, [0.02, 0.02], 2)
    saved = checkpoints.latest(tmp_path / "checkpoints")
    strange = {"unheard.of": 3.0, OBJECTIVE_COEFFICIENT: 7.0}
    saved = dataclasses.replace(saved, coefficients=saved.coefficients | strange)
    crew, steps = run(tmp_path, [0.001, 0.01], 4, resume=saved)
    assert [order[0] for order in crew.orders] == [{KL_COEFFICIENT: 0.4}, {KL_COEFFICIENT: 0.2}]
    assert steps[0]["actor/kl_coefficient"] == 0.4


def test_a_run_without_adaptive_coefficients_reports_none(tmp_path):
    crew, steps = run(tmp_path, [1.0], 1, {"name": "grpo"})
    assert crew.orders[0][0] == {}
    assert not [name for name in steps[0] if name.endswith("_coefficient")]


def test_while_the_values_warm_up_the_policy_and_its_coefficients_stand_still(tmp_path):
    def with_values(algorithm):
        value = ValueUse(credit=None, loss=None, coefficient=1.0, bootstrap_truncated=False, warmup_steps=2)
        return dataclasses.replace(algorithm, value=value)

    crew, _ = run(tmp_path, [0.0, 0.0, 0.02, 0.02], 4, change=with_values)
    assert [order[1] for order in crew.orders] == [True, True, False, False]
    assert [order[0][KL_COEFFICIENT] for order in crew.orders] == pytest.approx([0.1, 0.1, 0.1, 0.2])


def test_each_coefficient_follows_its_own_metric():
    both = Coefficients(
        {
            KL_COEFFICIENT: Adaptive(1.0, "kl/reference", DOUBLING),
            OBJECTIVE_COEFFICIENT: Adaptive(1.0, "kl/update", DOUBLING),
        },
        {},
    )
    both.move({"kl/reference": 1.0, "kl/update": 0.0})
    assert both.metrics() == {"actor/kl_coefficient": 2.0, "actor/objective_coefficient": 0.5}
    both.move({"kl/update": math.inf})
    assert both.values == {KL_COEFFICIENT: 2.0, OBJECTIVE_COEFFICIENT: 0.5}
