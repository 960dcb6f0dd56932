"""A train step with values on two ranks: the same losses, gradients, moments, bounds and weights as on one."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import step_parts
import torch
from learner_parts import model_folder, on_two_ranks, same
from test_critic import LAYOUTS, snapshots, spoiled
from test_step_ppo import assert_same

from penstock.learner import ranks
from penstock.learner.algorithms.bound import bind
from penstock.learner.config import AlgorithmSection, LearnerSection
from penstock.learner.ranks import Team
from penstock.learner.tally import Tally
from penstock.services.model_config import ModelSection

pytestmark = pytest.mark.engine
STAGES = (0, 1, 2, 3)
OWNERS = {"unequal": ([0, 1, 2, 3, 4, 6], [5]), "one rank without rows": ([], [0, 1, 2, 3, 4, 5, 6])}
DEALT = {s: tuple(zip(("own", "head"), sorted(OWNERS, reverse=s % 2 == 1), strict=True)) for s in STAGES}
"""At every stage each kind of values with one of the two ways to deal; over the stages, each with both."""
IN_BFLOAT16 = (("own", 1), ("own", 3), ("head", 2))
"""Kinds of values and stages; DeepSpeed has another optimizer for it at stage 1."""
HALVES = ([0, 3, 4, 6], [1, 2, 5])
ROWS = ("ppo", "a2c", "kimi")
SHARED = {
    "whitening": AlgorithmSection.model_validate({"name": "grpo", "whitening": {"over": "tokens"}}),
    "second moment": AlgorithmSection.model_validate(
        {"name": "grpo", "reject": {"kind": "second_moment", "max_moment": 0.04}}
    ),
    "values": step_parts.ppo("own"),
}


def whole_step_section(count):
    """Adam with a large ε, so that the rounding of a gradient near 0 does not decide the sign of an update."""
    return LearnerSection(
        ranks=count, mini_batches=2, epochs=2, groups_per_step=4, learning_rate=1e-3, eps=1e-3, micro_batch_tokens=32
    )


def begun(section, team, owners):
    """Bound, metrics and advantages by (group, member) of what this rank has at the start of a step."""
    from penstock.learner.start import begin

    share = step_parts.dealt(step_parts.batch_of(), [list(o) for o in owners], 2)[team.rank]
    start = begin(step_parts.bare_models("own"), share, bind(section), team)
    found = {}
    for plan, part in zip(share.mini_batches[0], start.parts[0], strict=True):
        for i, row in enumerate(plan):
            key = f"{share.batch.groups[row]} {share.batch.members[row]}"
            found[key] = part.advantages[i][part.rows.responses[i]]
    return {"bound": start.bound, "metrics": start.metrics, "advantages": found}


def loss_and_gradients(team, kind, stage, owners, dtype="float32"):
    old, new = step_parts.bare_models(kind), step_parts.bare_models(kind, moved=0.02)
    engines = step_parts.engines_of(new, LearnerSection(zero_stage=stage, ranks=team.size, dtype=dtype))
    share = step_parts.dealt(step_parts.batch_of(), [list(o) for o in owners], 2)[team.rank]
    tally = Tally()
    step_parts.start_and_losses(old, engines, share, step_parts.ppo(kind), team, tally)
    totals = tally.over(team)
    return totals.sum("actor/loss"), totals.sum("critic/loss"), step_parts.gradients(new)


def step(engines, algorithm, team, section):
    from penstock.learner.step import train_step

    share = step_parts.dealt(step_parts.batch_of(), HALVES, 2)[team.rank]
    return train_step(engines, dataclasses.replace(share, epochs=[[0], [0]]), algorithm, section, team)


def skipped_and_resumed(team, dtype, stage, folder):
    """One rank has a NaN in the values' loss, then in the policy's; then a step, a checkpoint, and a step from it."""
    section = LearnerSection(zero_stage=stage, ranks=2, learning_rate=3e-3, dtype=dtype)
    plain = bind(step_parts.ppo("own"))
    engines = step_parts.engines_of(step_parts.bare_models("own"), section)
    before = snapshots(engines)
    results = []
    for which in ("critic", "actor"):
        result = step(engines, spoiled(plain, which) if team.leads else plain, team, section)
        results.append((result.applied, result.skipped, same(before, snapshots(engines))))
    applied = step(engines, plain, team, section).applied
    engines.save(folder)
    team.barrier()
    metrics = step(engines, plain, team, section).metrics
    loaded = step_parts.engines_of(step_parts.bare_models("own", seed=7, moved=0.1), section)
    loaded.load(folder)
    again = step(loaded, plain, team, section).metrics
    return {
        "skipped": results,
        "applied afterwards": applied,
        "resumed": same(snapshots(engines), snapshots(loaded)) and metrics == again,
    }


def whole_step(team, name, start):
    """Weights after a step of a row, as the crew makes it."""
    from penstock.learner.crew import Crew
    from penstock.learner.engines import build

    algorithm, section = step_parts.row(name), whole_step_section(team.size)
    engines = build(start, section, algorithm.value)
    crew = Crew(team, engines, bind(algorithm), section)
    if not team.leads:
        crew.follow()
        return {}, {}
    trained = crew.train(step_parts.shares_of(algorithm, section))
    weights = crew.snapshot()
    crew.end()
    return weights, trained.metrics


def two_ranks(rank, address, folder):
    """What each of the two processes does; results are left in `folder`."""
    torch.set_num_threads(1)
    team = ranks.join(rank, 2, address, 120.0)
    results = {name: begun(section, team, OWNERS["unequal"]) for name, section in SHARED.items()}
    for stage in STAGES:
        for kind, name in DEALT[stage]:
            results[f"{kind} {stage}"] = loss_and_gradients(team, kind, stage, OWNERS[name])
    for kind, stage in IN_BFLOAT16:
        results[f"bfloat16 {kind} {stage}"] = loss_and_gradients(team, kind, stage, OWNERS["unequal"], "bfloat16")
    for dtype, stage in LAYOUTS:
        checkpoint = Path(folder) / f"checkpoint-{dtype}-{stage}"
        results[f"skipped {dtype} {stage}"] = skipped_and_resumed(team, dtype, stage, checkpoint)
    start = ModelSection(path=str(Path(folder) / "start"))
    for name in ROWS:
        results[f"whole {name}"] = whole_step(team, name, start)
    torch.save(results, Path(folder) / f"rank-{rank}.pt")
    team.barrier()


@pytest.fixture(scope="module")
def pair():
    """The results of both ranks, and the model they started from."""
    with tempfile.TemporaryDirectory() as folder:
        model_folder(Path(folder) / "start")
        results = on_two_ranks(two_ranks, Path(folder))
        yield results, ModelSection(path=str(Path(folder) / "start"))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["own", "head"])
def test_two_ranks_give_the_loss_and_gradient_worked_out_by_hand(pair, kind, stage):
    old, new = step_parts.bare_models(kind), step_parts.bare_models(kind, moved=0.02)
    expected = step_parts.plain_losses(old, new, step_parts.batch_of())
    for results in pair[0]:
        assert_same(results[f"{kind} {stage}"], expected)


@pytest.mark.parametrize("name", SHARED)
def test_moments_and_bounds_over_two_ranks_are_those_over_one(pair, name):
    alone = begun(SHARED[name], Team(0, 1, 60.0, None), ([0, 1, 2, 3, 4, 5, 6],))
    assert np.isfinite(alone["bound"]) == (name == "second moment")
    together = {}
    for results in pair[0]:
        assert results[name]["bound"] == pytest.approx(alone["bound"], rel=1e-5)
        assert results[name]["metrics"] == pytest.approx(alone["metrics"], rel=1e-5)
        together |= results[name]["advantages"]
    assert together.keys() == alone["advantages"].keys()
    for key, advantages in alone["advantages"].items():
        torch.testing.assert_close(together[key], advantages, rtol=1e-4, atol=1e-5)


def flat(gradients, place):
    return torch.cat([g.double().flatten() for name, g in sorted(gradients.items()) if name.startswith(place)])


@pytest.mark.parametrize(("kind", "stage"), IN_BFLOAT16)
def test_in_bfloat16_two_ranks_give_the_losses_and_gradients_of_one_and_the_direction_of_float32(
    pair, team, kind, stage
):
    *alone, gradients = loss_and_gradients(team, kind, stage, ([0, 1, 2, 3, 4, 5, 6],), "bfloat16")
    old, new = step_parts.bare_models(kind), step_parts.bare_models(kind, moved=0.02)
    *exact, wanted = step_parts.plain_losses(old, new, step_parts.batch_of())
    places = ("policy", "critic") if kind == "own" else ("policy",)
    for results in pair[0]:
        *losses, found = results[f"bfloat16 {kind} {stage}"]
        assert losses == pytest.approx(alone, rel=1e-5)
        assert losses == pytest.approx(exact, rel=0.01)
        for place in places:
            mine, one, float32 = (flat(each, place) for each in (found, gradients, wanted))
            assert float((mine - one).norm()) <= 0.01 * float(one.norm())
            assert float(torch.cosine_similarity(mine, float32, dim=0)) > 0.999


@pytest.mark.parametrize(("dtype", "stage"), LAYOUTS)
def test_a_nan_in_either_loss_on_one_rank_makes_both_engines_skip_on_all(pair, dtype, stage):
    for results in pair[0]:
        assert results[f"skipped {dtype} {stage}"]["skipped"] == [(0, 2, True), (0, 2, True)]
        assert results[f"skipped {dtype} {stage}"]["applied afterwards"] == 2


@pytest.mark.parametrize(("dtype", "stage"), LAYOUTS)
def test_policy_and_values_go_on_from_a_checkpoint_as_if_nothing_had_happened(pair, dtype, stage):
    for results in pair[0]:
        assert results[f"skipped {dtype} {stage}"]["resumed"]


@pytest.mark.parametrize("name", ROWS)
def test_a_step_of_several_updates_on_two_ranks_leads_to_the_weights_of_one(pair, team, name):
    results, start = pair
    weights, metrics = results[0][f"whole {name}"]
    expected, wanted = whole_step(team, name, start)
    for key, tensor in expected.items():
        torch.testing.assert_close(weights[key], tensor, rtol=0, atol=2e-6)
    assert metrics.keys() == wanted.keys()
    for key in ("actor/loss", "actor/grad_norm", "critic/loss", "critic/explained_variance"):
        assert metrics.get(key, 0.0) == pytest.approx(wanted.get(key, 0.0), rel=1e-3, abs=1e-5), key
