"""Every row of the table makes a real train step."""

from __future__ import annotations

import math

import pytest
import step_parts
import torch
from learner_parts import model_folder

from penstock.learner.algorithms import table
from penstock.learner.config import LearnerSection
from penstock.learner.metrics import METRICS
from penstock.services.metrics import describe
from penstock.services.model_config import ModelSection

pytestmark = pytest.mark.engine

CLIPS = {"ppo_clip": {"low", "high"}, "gspo": {"low", "high"}, "cispo": {"high"}}
"""Which clip fractions an objective has; the others have none, overall and per bucket."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return ModelSection(path=str(model_folder(tmp_path_factory.mktemp("start"))))


@pytest.mark.parametrize("name", sorted(table.rows()))
def test_every_row_makes_a_step_with_finite_metrics_that_changes_the_weights(team, start, name):
    from penstock.learner.crew import Crew
    from penstock.learner.engines import build

    section = LearnerSection(mini_batches=2, epochs=2, groups_per_step=4, learning_rate=1e-3, micro_batch_tokens=32)
    algorithm = step_parts.row(name)
    engines = build(start, section, algorithm.value)
    crew = Crew(team, engines, step_parts.bind(algorithm), section)
    before = crew.snapshot()
    trained = crew.train(step_parts.shares_of(algorithm, section))
    after = crew.snapshot()
    assert (trained.applied, trained.skipped) == (4, 0)
    assert all(math.isfinite(value) for value in trained.metrics.values()), trained.metrics
    assert not [metric for metric in trained.metrics if describe(metric, METRICS) is None]
    assert all(not torch.equal(before[key], after[key]) for key in before)
    values = {"critic/loss", "critic/value_mean", "critic/return_mean", "critic/explained_variance"}
    assert values & set(trained.metrics) == (values if algorithm.value.kind != "none" else set())
    for clip in ("low", "high"):
        names = {f"actor/pg_clipfrac_{clip}", f"actor/lag_0/pg_clipfrac_{clip}"}
        assert names & set(trained.metrics) == (names if clip in CLIPS.get(algorithm.objective.kind, ()) else set())
    assert ("critic/grad_norm" in trained.metrics) == (algorithm.value.kind == "own")
