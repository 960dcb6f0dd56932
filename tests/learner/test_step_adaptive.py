"""Adaptive coefficients on the ranks: they reach the loss, and what they follow is measured after the last update."""

from __future__ import annotations

import pytest
import step_parts
import torch
from learner_parts import model_folder

from penstock.learner.algorithms.bound import KL_COEFFICIENT, OBJECTIVE_COEFFICIENT
from penstock.learner.algorithms.composition import compose
from penstock.learner.config import AlgorithmSection, LearnerSection
from penstock.learner.forward import policy_pass
from penstock.learner.micro import MicroBatch
from penstock.services.model_config import ModelSection

pytestmark = pytest.mark.engine

DOUBLING = {"kind": "doubling", "target": 0.01}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return ModelSection(path=str(model_folder(tmp_path_factory.mktemp("start"))))


def penalised(coefficient, controller=DOUBLING):
    objective = {"kind": "ppo_kl", "coefficient": coefficient, "controller": controller}
    return AlgorithmSection.model_validate({"name": "grpo", "objective": objective})


def to_reference(coefficient):
    kl = {"coefficient": coefficient, "controller": DOUBLING} if coefficient else {}
    return AlgorithmSection.model_validate({"name": "grpo", "kl": kl})


def step_of(team, start, algorithm, epochs, coefficients):
    """One step from the weights in `start`; its metrics, and the share's micro-batches with log-probs of every token
    before and after it."""
    from penstock.learner.crew import Crew
    from penstock.learner.engines import build

    section = LearnerSection(epochs=epochs, groups_per_step=4, learning_rate=1e-2, micro_batch_tokens=32)
    engines = build(start, section, algorithm.value)
    (share,) = step_parts.shares_of(algorithm, section)
    parts = [MicroBatch.of(share.batch, rows, engines.device) for mini in share.mini_batches for rows in mini]

    def logps():
        with torch.no_grad():
            return [policy_pass(engines.policy, part)[0] for part in parts]

    before = logps()
    trained = Crew(team, engines, step_parts.bind(algorithm), section).train([share], coefficients=coefficients)
    assert trained.applied == epochs
    return trained.metrics, parts, before, logps()


def loss_of(algorithm, parts, logps, proxes):
    """The loss of these log-probs under a section's own coefficients."""
    bound = step_parts.bind(algorithm)
    return sum(
        float(compose(bound, logp, prox, p.logp_sampler, p.logp_reference, p.advantages, p.mask, p.weights, None).loss)
        for p, logp, prox in zip(parts, logps, proxes, strict=True)
    )


@pytest.mark.parametrize("beta", [0.0, 10.0])
def test_the_coefficient_of_the_kl_to_the_reference_is_the_one_of_the_order(team, start, beta):
    metrics, parts, before, _ = step_of(team, start, to_reference(0.5), 1, {KL_COEFFICIENT: beta})
    assert metrics["actor/loss"] == pytest.approx(loss_of(to_reference(beta), parts, before, before), rel=1e-4)
    assert (metrics["actor/loss"] == pytest.approx(metrics["actor/pg_loss"], rel=1e-4)) == (beta == 0)


@pytest.mark.parametrize("beta", [0.0, 10.0])
def test_the_coefficient_of_the_objective_is_the_one_of_the_order(team, start, beta):
    # The first of two updates starts from π_prox, where the penalty and its gradient are 0: without the second one
    # the policy is where the second one finds it.
    _, _, _, between = step_of(team, start, penalised(0.5), 1, {OBJECTIVE_COEFFICIENT: beta})
    metrics, parts, before, _ = step_of(team, start, penalised(0.5), 2, {OBJECTIVE_COEFFICIENT: beta})
    losses = [loss_of(penalised(beta), parts, logps, before) for logps in (before, between)]
    assert metrics["actor/loss"] == pytest.approx(sum(losses) / 2, rel=1e-3)
    other = loss_of(penalised(0.5), parts, between, before)
    assert losses[1] != pytest.approx(other, rel=1e-2), "the coefficient must matter for this test to say anything"


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_objectives_coefficient_follows_the_kl_after_the_last_update(team, start, epochs):
    metrics, parts, before, after = step_of(team, start, penalised(0.5), epochs, {OBJECTIVE_COEFFICIENT: 0.5})
    moved = [
        (float(a) - float(b))
        for p, x, y in zip(parts, after, before, strict=True)
        for a, b in zip(x[p.mask], y[p.mask], strict=True)
    ]
    expected = sum(torch.tensor(x, dtype=torch.float64).expm1().item() - x for x in moved) / len(moved)
    assert metrics["kl/step"] == pytest.approx(expected, rel=1e-3)
    assert metrics["kl/step"] > 1.5 * metrics["kl/update"]


def test_a_coefficient_that_stays_costs_no_pass_after_the_last_update(team, start):
    metrics, *_ = step_of(team, start, penalised(0.5, {"kind": "fixed"}), 2, {})
    assert "kl/step" not in metrics
