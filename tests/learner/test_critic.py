"""The value model beside the policy: it learns, it comes back with a checkpoint, both skip what one cannot apply."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import step_parts
import torch
from learner_parts import model_folder, same, tiny_model

from penstock.learner.algorithms.bound import bind
from penstock.learner.config import LearnerSection
from penstock.services.contracts import PenstockError
from penstock.services.logprob_model import LogprobModel
from penstock.services.model_config import ModelSection

pytestmark = pytest.mark.engine
SECTION = LearnerSection(learning_rate=3e-3)


def snapshots(engines):
    """All weights of both, the value head's among them."""
    copies = {f"policy {name}": tensor for name, tensor in engines.policy.snapshot(True).items()}
    if engines.critic is not None:
        copies |= {f"critic {name}": tensor for name, tensor in engines.critic.snapshot(True).items()}
    return copies


def step(engines, algorithm, team, section=SECTION, batch=None, frozen=False):
    from penstock.learner.step import train_step

    (share,) = step_parts.dealt(step_parts.batch_of() if batch is None else batch, [list(range(7))], 3)
    share = dataclasses.replace(share, epochs=[[0], [0]])
    return train_step(engines, share, algorithm, section, team, policy_frozen=frozen)


@pytest.mark.parametrize("kind", ["own", "head"])
def test_on_a_batch_that_stays_the_same_the_values_learn_to_predict_the_returns(team, kind):
    section = LearnerSection(learning_rate=1e-2, epochs=2)
    # λ = 1 and no bootstrap: returns that do not depend on the values themselves.
    cells = {"credit": {"gamma": 0.9, "lam": 1.0}, "value": {"kind": kind, "clip": None}}
    algorithm = bind(step_parts.ppo(kind, **cells))
    models = step_parts.bare_models(kind)
    for model in (models.policy, models.critic):
        if getattr(model, "value_head", None) is not None:
            model.value_head.reset_parameters()
    engines = step_parts.engines_of(models, section)
    results = [step(engines, algorithm, team, section, frozen=True) for _ in range(30)]
    explained = [result.metrics["critic/explained_variance"] for result in results]
    losses = [result.tally.over(team).sum("critic/loss") for result in results]
    assert results[0].metrics["critic/value_mean"] == 0
    assert abs(explained[0]) < 1e-6
    assert explained[-1] > 0.9
    assert losses[-1] < 0.1 * losses[0]


def test_while_the_policy_is_frozen_only_the_values_change(team):
    models = step_parts.bare_models("own")
    engines = step_parts.engines_of(models, SECTION)
    before = snapshots(engines)
    result = step(engines, bind(step_parts.ppo("own")), team, frozen=True)
    after = snapshots(engines)
    assert (result.applied, engines.policy.updates, engines.critic.updates) == (2, 0, 2)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("policy"))
    assert all(not torch.equal(before[name], after[name]) for name in before if name.startswith("critic"))
    assert step(engines, bind(step_parts.ppo("own")), team).applied == 2
    assert not torch.equal(before["policy model.norm.weight"], snapshots(engines)["policy model.norm.weight"])


def spoiled(algorithm, which):
    """The algorithm with a loss of the policy or of the values that is NaN in value and gradient."""
    if which == "critic":
        use = algorithm.value

        def loss(*given):
            losses, facts = use.loss(*given)
            return losses * torch.nan, facts

        return dataclasses.replace(algorithm, value=dataclasses.replace(use, loss=loss))

    def objective(*given):
        losses, facts = algorithm.objective(*given)
        return losses * torch.nan, facts

    return dataclasses.replace(algorithm, objective=objective)


LAYOUTS = [*(("float32", stage) for stage in range(4)), ("bfloat16", 1)]
"""bfloat16 at stage 1 is another optimizer of DeepSpeed's; the other stages share theirs with float32."""


@pytest.mark.parametrize(("dtype", "stage"), LAYOUTS)
def test_what_one_of_the_two_cannot_apply_both_skip_and_nothing_is_left_of_it(team, dtype, stage):
    section = LearnerSection(learning_rate=3e-3, zero_stage=stage, dtype=dtype)
    algorithm = bind(step_parts.ppo("own"))
    engines, untouched = (step_parts.engines_of(step_parts.bare_models("own"), section) for _ in range(2))
    before = snapshots(engines)
    for which in ("critic", "actor"):
        result = step(engines, spoiled(algorithm, which), team, section)
        assert (result.applied, result.skipped) == (0, 2)
        assert same(snapshots(engines), before)
    assert step(engines, algorithm, team, section).applied == 2
    step(untouched, algorithm, team, section)
    assert same(snapshots(engines), snapshots(untouched))


def test_the_norm_of_each_gradient_is_cut_by_itself(team):
    sections = [LearnerSection(learning_rate=3e-3, max_grad_norm=norm) for norm in (1e-3, 1e3)]
    metrics = []
    for section in sections:
        engines = step_parts.engines_of(step_parts.bare_models("own"), section)
        metrics.append(step(engines, bind(step_parts.ppo("own")), team, section).tally.over(team).means())
    names = {"actor/grad_norm", "critic/grad_norm", "actor/lr", "critic/lr"}
    assert names <= set(metrics[0])
    assert metrics[1]["critic/grad_norm"] != pytest.approx(metrics[1]["actor/grad_norm"], rel=0.01)


@pytest.mark.parametrize(("kind", "stage"), [("own", 1), ("own", 3), ("head", 2)])
def test_training_goes_on_from_a_checkpoint_bit_by_bit(team, tmp_path, kind, stage):
    section = LearnerSection(learning_rate=3e-3, zero_stage=stage)
    algorithm = bind(step_parts.ppo(kind))
    engines = step_parts.engines_of(step_parts.bare_models(kind), section)
    step(engines, algorithm, team, section)
    engines.save(tmp_path)
    expected = step(engines, algorithm, team, section)
    loaded = step_parts.engines_of(step_parts.bare_models(kind, seed=5, moved=0.1), section)
    loaded.load(tmp_path)
    found = step(loaded, algorithm, team, section)
    assert found.metrics == expected.metrics
    assert same(snapshots(loaded), snapshots(engines))
    assert found.tally.over(team).means() == expected.tally.over(team).means()
    if kind == "own":
        assert loaded.critic.updates == 4
        assert (tmp_path / "critic").is_dir()


def test_a_checkpoint_without_the_value_model_is_an_error_that_names_the_folder(team, tmp_path):
    engines = step_parts.engines_of(step_parts.bare_models("own"), SECTION)
    engines.policy.save(tmp_path)
    with pytest.raises(PenstockError, match=str(tmp_path / "critic")):
        engines.load(tmp_path)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_value_head_is_trained_and_never_published(team, stage):
    from penstock.learner.engine import Engine

    model = LogprobModel(tiny_model(), value_head=True)
    names = {name for name, _ in tiny_model().named_parameters()}
    engine = Engine(model, LearnerSection(zero_stage=stage), 1)
    assert set(engine.snapshot(True)) == names
    assert {name for name, _ in model.named_parameters()} > {f"model.{name}" for name in names}


def test_a_run_starts_from_the_weights_of_its_model_or_from_those_named_for_its_values(team, tmp_path):
    from penstock.learner.engines import build

    model_folder(tmp_path / "start")
    tiny_model(seed=3).save_pretrained(tmp_path / "values")
    section = ModelSection(path=str(tmp_path / "start"))
    given = {"own": None, "named": str(tmp_path / "values")}
    for name, path in given.items():
        algorithm = step_parts.ppo("own", value={"kind": "own", "path": path, "learning_rate": 0.25})
        engines = build(section, SECTION, algorithm.value)
        wanted = tiny_model(seed=0 if name == "own" else 3).base_model.state_dict()
        found = engines.critic.snapshot(True)
        assert all(torch.equal(found[f"backbone.{key}"], tensor) for key, tensor in wanted.items())
        assert np.all(found["value_head.weight"].numpy() == 0)
        assert engines.critic_learning_rate == 0.25


def test_in_bfloat16_the_values_are_float32_and_the_step_is_made(team):
    section = LearnerSection(learning_rate=3e-3, dtype="bfloat16", zero_stage=2, gradient_checkpointing=True)
    engines = step_parts.engines_of(step_parts.bare_models("own"), section)
    before = snapshots(engines)
    assert step(engines, bind(step_parts.ppo("own")), team, section).applied == 2
    changed = snapshots(engines)
    assert not torch.equal(before["critic value_head.weight"], changed["critic value_head.weight"])
    values = engines.critic(input_ids=torch.ones(1, 3).long(), attention_mask=torch.ones(1, 3).long(), window=1)
    assert values.dtype == torch.float32
