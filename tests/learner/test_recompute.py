"""What another algorithm makes of an archived step's groups: which of them it trains on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pytest
import tiny
import torch

from penstock.learner.archived import Models, Step
from penstock.learner.assemble import Moment
from penstock.learner.config import AlgorithmSection
from penstock.learner.recompute import Unfit, norm, outcome
from penstock.learner.whatif import Row, _groups_differ
from penstock.services.logprob_model import LogprobModel
from penstock.services.trajectory import Group, Sampling
from penstock.services.versions import FIRST

MOMENT = Moment(FIRST, {}, 1, False)
OWN = AlgorithmSection(name="rloo", group_filter="all")


def group(index: int, *rewards: float | None) -> Group:
    """Answers of random tokens, so that each pulls elsewhere."""
    draw = np.random.default_rng(index)
    answers = [
        builders.trajectory(
            reward,
            tokens=draw.integers(4, 40, size := int(draw.integers(2, 6))),
            logprobs=draw.normal(-3, 0.3, size),
        )
        for reward in rewards
    ]
    return Group(prompt=builders.prompt(index), sampling=Sampling(max_tokens=8), trajectories=tuple(answers))


MIXED = (group(0, 0.0, 1.0, 1.0), group(1, 1.0, 0.0), group(2, 0.0, 1.0, 0.0))
FLAT, LONELY = group(3, 1.0, 1.0, 1.0), group(4, 1.0, None, None)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(LogprobModel(tiny.model()), None, torch.device("cpu"))


def step_of(*groups: Group) -> Step:
    facts = {"algorithm": OWN.model_dump(mode="json"), "coefficients": {}}
    return Step(Path("unused"), FIRST.next(), MOMENT, builders.batch_of(0, 0, **EMPTY), list(groups), facts)


EMPTY = {
    "prompt_tokens": np.zeros(0, np.int32),
    "prompt_lengths": np.zeros(0, np.int64),
    "tokens": np.zeros(0, np.int32),
    "lengths": np.zeros(0, np.int64),
    "logp_sampler": np.zeros(0, np.float32),
}


@pytest.mark.parametrize("name", ["grpo", "dapo", "cispo"])
def test_a_row_that_drops_groups_without_signal_sees_the_archive_without_them(models: Models, name: str) -> None:
    section = AlgorithmSection(name=name, group_filter="signal")
    whole = outcome(step_of(*MIXED, FLAT), models, section, 64)
    without = outcome(step_of(*MIXED), models, section, 64)
    assert norm(without.gradient) > 0
    for found, wanted in zip(whole.gradient, without.gradient, strict=True):
        assert torch.equal(found, wanted)
    assert whole.metrics == without.metrics
    assert whole.metrics["whatif/groups"] == 3
    # Where all groups are kept the flat one is in the denominators: the gradient shrinks by its share.
    kept = outcome(step_of(*MIXED, FLAT), models, AlgorithmSection(name=name, group_filter="all"), 64)
    assert kept.metrics["whatif/groups"] == 4
    assert norm(kept.gradient) < norm(without.gradient)


def test_groups_below_a_variants_quorum_are_not_among_its_groups(models: Models) -> None:
    section = AlgorithmSection(name="rloo", group_filter="all", quorum=3)
    found = outcome(step_of(*MIXED, LONELY), models, section, 64)
    wanted = outcome(step_of(MIXED[0], MIXED[2]), models, section, 64)
    assert found.metrics == wanted.metrics
    assert found.metrics["whatif/groups"] == 2


def test_a_variant_that_no_group_is_left_for_says_why(models: Models) -> None:
    section = AlgorithmSection(name="grpo", group_filter="signal", quorum=2)
    with pytest.raises(
        Unfit,
        match=r"train on none of the 2 groups of the step that ended in version 0\.1: 1 have fewer scored answers than "
        r"its quorum of 2, 1 have no signal",
    ):
        outcome(step_of(FLAT, LONELY), models, section, 64)


def test_a_note_says_who_used_how_many_groups_where_that_differs() -> None:
    rows = [Row(label, {}, "", [{"whatif/groups": n} for n in counts]) for label, counts in USED.items()]
    assert list(_groups_differ(rows)) == [
        "group filters and quorums differ; groups used per step, on average: 8 by the run's own, ppo; 6.5 by grpo"
    ]
    assert list(_groups_differ([replace(rows[2], reason="it needs values"), *rows[:2]])) == []


USED = {"the run's own": (8, 8), "ppo": (8, 8), "grpo": (6, 7)}
