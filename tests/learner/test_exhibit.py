"""What a train step shows of a few answers, on the real engine: against log-probs and weights worked out beside it."""

from __future__ import annotations

import numpy as np
import pytest
import step_parts
from learner_parts import tiny_model

from penstock.learner import deal
from penstock.learner.algorithms.bound import bind
from penstock.learner.assemble import Moment, assemble
from penstock.learner.config import AlgorithmSection, LearnerSection
from penstock.learner.critic import ValueModel
from penstock.learner.exhibit import split, to_bytes
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import sequence_logprobs
from penstock.services.samples import CLIPPED_HIGH, CLIPPED_LOW, COUNTS, LEFT_OUT, WEIGHT_CUT
from penstock.services.versions import FIRST

pytestmark = pytest.mark.engine
SHOWN = (1, 6, 11)


def step_of(team, section, shown=SHOWN, **learner):
    """(share, the shown rows' columns, the step's log-probs at its start) of one step on groups made up."""
    from penstock.learner.engine import Engine
    from penstock.learner.engines import Engines
    from penstock.learner.step import train_step

    learner = LearnerSection(groups_per_step=4, micro_batch_tokens=32, **({"learning_rate": 1e-2} | learner))
    bound = bind(section)
    batch = assemble(step_parts.groups_of(), bound, Moment(FIRST, {}, 0, False))
    minis = deal.split_groups(batch, learner.mini_batches, 0)
    batch = deal.weigh(batch, minis, bound.reduction)
    (share,) = deal.deal(batch, minis, 1, learner.micro_batch_tokens, learner.epochs, 0, shown)
    engine = Engine(LogprobModel(tiny_model()), learner, 1)
    critic = Engine(ValueModel(tiny_model(1).base_model), learner, 1) if bound.value is not None else None
    result = train_step(Engines(engine, critic, 1e-2), share, bound, learner, team)
    lengths = [int(share.batch.lengths[row]) for row in share.shown]
    return share, split(to_bytes(result.shown), lengths)


def at_the_start(share):
    """log π of every row under the weights that the step starts from."""
    return sequence_logprobs(LogprobModel(tiny_model()), share.batch.rows())


def test_the_shown_rows_are_those_that_were_picked(team):
    share, told = step_of(team, AlgorithmSection(name="grpo"))
    batch = assemble(step_parts.groups_of(), bind(AlgorithmSection()), Moment(FIRST, {}, 0, False))
    wanted = {(int(batch.groups[row]), int(batch.members[row])) for row in SHOWN}
    assert {(int(share.batch.groups[row]), int(share.batch.members[row])) for row in share.shown} == wanted
    assert len(told) == len(SHOWN)


@pytest.mark.parametrize("learner", [{}, {"mini_batches": 2, "epochs": 2}], ids=["one update", "four updates"])
def test_log_probs_are_those_of_the_weights_that_the_step_started_from(team, learner):
    share, told = step_of(team, AlgorithmSection(name="grpo"), **learner)
    start = at_the_start(share)
    for row, columns in zip(share.shown, told, strict=True):
        np.testing.assert_allclose(columns["logp_learner"], start[row], atol=1e-5)


def test_weights_are_what_the_correction_made_of_the_ratio(team):
    section = AlgorithmSection.model_validate({"name": "grpo", "trust": {"kind": "truncated_is", "max_weight": 1.05}})
    share, told = step_of(team, section)
    cut = 0
    for row, columns in zip(share.shown, told, strict=True):
        sampler = share.batch.split(share.batch.logp_sampler)[row]
        weights = np.exp(at_the_start(share)[row] - sampler)
        np.testing.assert_allclose(columns["trust_weights"], np.minimum(weights, 1.05), rtol=1e-4)
        assert ((columns["marks"] & WEIGHT_CUT) > 0).tolist() == (weights > 1.05).tolist()
        assert (columns["marks"] & COUNTS).all()
        cut += int((weights > 1.05).sum())
        np.testing.assert_array_equal(columns["advantages"], share.batch.split(share.batch.advantages)[row])
    assert cut > 0, "otherwise the test shows nothing"


def test_tokens_that_the_correction_masks_are_left_out(team):
    section = AlgorithmSection.model_validate(
        {"name": "grpo", "trust": {"kind": "masked_is", "min_weight": 0.97, "max_weight": 1.03}}
    )
    share, told = step_of(team, section)
    found = []
    for row, columns in zip(share.shown, told, strict=True):
        weights = np.exp(at_the_start(share)[row] - share.batch.split(share.batch.logp_sampler)[row])
        beyond = (weights < 0.97) | (weights > 1.03)
        assert ((columns["marks"] & LEFT_OUT) > 0).tolist() == beyond.tolist()
        found += beyond.tolist()
    assert 0 < sum(found) < len(found)


def test_a_token_that_any_update_clips_is_marked(team):
    # The first update starts from π_prox, where nothing is clipped; a large one goes beyond 1 ± 0.001.
    section = AlgorithmSection.model_validate({"name": "grpo", "objective": {"clip_low": 0.001, "clip_high": 0.001}})
    clipped = CLIPPED_LOW | CLIPPED_HIGH
    _, once = step_of(team, section)
    assert not any((columns["marks"] & clipped).any() for columns in once)
    share, twice = step_of(team, section, epochs=2)
    for row, columns in zip(share.shown, twice, strict=True):
        advantages = share.batch.split(share.batch.advantages)[row]
        low, high = ((columns["marks"] & bit) > 0 for bit in (CLIPPED_LOW, CLIPPED_HIGH))
        # Below only where the answer is worse than its group, above only where it is better.
        assert not (low & (advantages >= 0)).any()
        assert not (high & (advantages <= 0)).any()
    assert any((columns["marks"] & clipped).any() for columns in twice)


def test_advantages_from_values_come_from_the_rank_that_computed_them(team):
    section = AlgorithmSection.model_validate(
        {"name": "ppo", "credit": {"gamma": 1.0, "lam": 1.0}, "whitening": {"over": "none"}}
    )
    share, told = step_of(team, section)
    for row, columns in zip(share.shown, told, strict=True):
        # With γ = λ = 1 the return is what is still to come of the rewards, and the advantage its distance from the
        # value.
        rewards = share.batch.split(share.batch.token_rewards)[row]
        coming = np.cumsum(rewards[::-1])[::-1]
        np.testing.assert_allclose(columns["returns"], coming, atol=1e-5)
        np.testing.assert_allclose(columns["advantages"], coming - columns["values"], atol=1e-5)


def test_nothing_is_told_where_nothing_is_shown(team):
    share, told = step_of(team, AlgorithmSection(name="grpo"), shown=())
    assert share.shown == [] and told == []
