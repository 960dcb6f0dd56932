"""Advantages, objectives, corrections, KL and reductions: by hand, then against plain loops on random inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.learner.algorithms import kl, reductions
from penstock.learner.algorithms.advantages import group_mean, group_zscore, has_signal
from penstock.learner.algorithms.corrections import truncated_is, uncorrected
from penstock.learner.algorithms.objectives import policy_gradient, ppo_clip
from penstock.learner.algorithms.reductions import weighted_sum

F = torch.float64
NAN = float("nan")


def row(*values):
    return torch.tensor([values], dtype=F)


def all_of(tensor):
    return torch.ones_like(tensor, dtype=torch.bool)


# --- advantages -----------------------------------------------------------------------------------


def test_the_z_score_of_zero_one_one_two_is_worked_out_with_n_minus_one():
    # mean 1, deviations −1 0 0 1, variance 2/3.
    rewards = torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=F)
    found = group_zscore(rewards, all_of(rewards), 1e-4)
    s = math.sqrt(2 / 3) + 1e-4
    assert found.tolist() == pytest.approx([-1 / s, 0, 0, 1 / s])


def test_an_unscored_member_takes_no_part_in_the_baseline_and_gets_nothing():
    rewards = torch.tensor([0.0, 100.0, 2.0], dtype=F)
    scored = torch.tensor([True, False, True])
    s = math.sqrt(2)
    assert group_zscore(rewards, scored, 1e-4).tolist() == pytest.approx([-1 / (s + 1e-4), 0, 1 / (s + 1e-4)])
    assert group_mean(rewards, scored).tolist() == [-1, 0, 1]


def test_equal_rewards_give_no_advantage_although_their_float_deviation_is_not_zero():
    rewards = torch.full((7,), 0.1)  # float32: the mean of seven times 0.1 need not be 0.1
    assert not has_signal(rewards, all_of(rewards))
    assert group_zscore(rewards, all_of(rewards), 1e-4).tolist() == [0.0] * 7
    assert group_mean(rewards, all_of(rewards)).tolist() == [0.0] * 7


def test_a_difference_of_one_ulp_is_signal_and_stays_small():
    rewards = torch.tensor([1.0, 1.0 + 2**-52], dtype=F)
    assert has_signal(rewards, all_of(rewards))
    assert group_zscore(rewards, all_of(rewards), 1e-4).abs().max() < 1e-10


def test_a_group_of_one_or_none_scored_has_no_signal():
    rewards = torch.tensor([1.0, 2.0])
    assert not has_signal(rewards, torch.tensor([True, False]))
    assert not has_signal(rewards, torch.tensor([False, False]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-5, 5, width=32), st.booleans()), min_size=1, max_size=8))
def test_the_z_score_is_the_plain_loops(members):
    rewards = torch.tensor([r for r, _ in members], dtype=F)
    scored = torch.tensor([s for _, s in members])
    counted = [r for r, s in members if s]
    expected = [0.0] * len(members)
    if counted and max(counted) > min(counted):
        mean = sum(counted) / len(counted)
        std = math.sqrt(sum((r - mean) ** 2 for r in counted) / (len(counted) - 1))
        expected = [(r - mean) / (std + 1e-4) if s else 0.0 for r, s in members]
    assert group_zscore(rewards, scored, 1e-4).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


# --- objectives -----------------------------------------------------------------------------------

# Four tokens: ratio 2 and 1/2, advantage +1 and −1. Clipped at 0.8 and 1.28.
LOGP = (math.log(2), math.log(2), -math.log(2), -math.log(2))
ADVANTAGES = (1.0, -1.0, 1.0, -1.0)


def test_ppo_clips_only_where_that_makes_the_objective_smaller():
    logp = row(*LOGP).requires_grad_()
    zero = torch.zeros(1, 4, dtype=F)
    loss, facts = ppo_clip(logp, zero, zero, row(*ADVANTAGES), all_of(zero), 0.2, 0.28)
    # +1 at ratio 2 is capped at 1.28; −1 at ratio 2 is not; +1 at 1/2 is not; −1 at 1/2 is held at 0.8.
    assert loss[0].tolist() == pytest.approx([-1.28, 2.0, -0.5, 0.8])
    loss.sum().backward()
    # d(−r A)/d log π = −r A where it is not clipped.
    assert logp.grad[0].tolist() == pytest.approx([0.0, 2.0, -0.5, 0.0])
    assert facts["actor/pg_clipfrac_high"][0].tolist() == [1, 0, 0, 0]
    assert facts["actor/pg_clipfrac_low"][0].tolist() == [0, 0, 0, 1]


def test_on_policy_ppo_is_the_policy_gradient():
    logp = row(-1.0, -2.0).requires_grad_()
    other = row(-1.0, -2.0).requires_grad_()
    advantages = row(0.7, -0.3)
    ppo_clip(logp, logp.detach(), logp.detach(), advantages, all_of(advantages), 0.2, 0.2)[0].sum().backward()
    policy_gradient(other, other, other, advantages, all_of(advantages))[0].sum().backward()
    assert logp.grad[0].tolist() == pytest.approx([-0.7, 0.3])
    assert torch.equal(logp.grad, other.grad)


@pytest.mark.parametrize("objective", [lambda *a: ppo_clip(*a, 0.2, 0.2), policy_gradient])
def test_masked_tokens_may_hold_anything_without_effect_on_value_or_gradient(objective):
    mask = torch.tensor([[True, False, True]])
    clean = row(-1.0, 0.0, -2.0).requires_grad_()
    expected, _ = objective(clean, row(-1.1, 0.0, -1.9), row(-1.0, 0.0, -2.0), row(1.0, 0.0, -1.0), mask)
    expected.sum().backward()
    for junk in (NAN, math.inf, -math.inf, 1e30):
        logp = row(-1.0, junk, -2.0).requires_grad_()
        found, _ = objective(logp, row(-1.1, junk, -1.9), row(-1.0, junk, -2.0), row(1.0, junk, -1.0), mask)
        found.sum().backward()
        assert torch.equal(found, expected)
        assert torch.equal(logp.grad, clean.grad)


logs = st.floats(-20, 0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(logs, logs, st.floats(-3, 3), st.booleans()), min_size=1, max_size=6))
def test_ppo_is_the_plain_loops(tokens):
    logp = row(*[t[0] for t in tokens]).requires_grad_()
    mask = torch.tensor([[t[3] for t in tokens]])
    loss, _ = ppo_clip(logp, row(*[t[1] for t in tokens]), logp, row(*[t[2] for t in tokens]), mask, 0.2, 0.3)
    loss.sum().backward()
    for i, (new, old, advantage, counts) in enumerate(tokens):
        ratio = math.exp(new - old)
        plain = -min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage) if counts else 0.0
        assert loss[0, i].item() == pytest.approx(plain, rel=1e-9, abs=1e-9)
        clipped = (ratio > 1.3 and advantage > 0) or (ratio < 0.8 and advantage < 0)
        slope = 0.0 if clipped or not counts else -ratio * advantage
        if min(abs(ratio - 0.8), abs(ratio - 1.3)) > 1e-6:
            assert logp.grad[0, i].item() == pytest.approx(slope, rel=1e-9, abs=1e-9)


# --- corrections ----------------------------------------------------------------------------------


def test_truncated_weights_are_the_ratio_up_to_the_bound():
    prox, sampler = row(-1.0, -1.0, -5.0), row(-1.0 - math.log(3), -1.0 - math.log(1.5), -4.0)
    trust, facts = truncated_is(prox, sampler, prox, all_of(prox), 2.0)
    assert trust.weights[0].tolist() == pytest.approx([2.0, 1.5, math.exp(-1)])
    assert facts["rollout_corr/clipfrac"][0].tolist() == [1, 0, 0]
    assert trust.keep.all()


def test_a_ratio_beyond_the_range_of_floats_is_still_cut_at_the_bound():
    prox, sampler = row(-1.0), row(-2000.0)
    assert truncated_is(prox, sampler, prox, all_of(prox), 2.0)[0].weights.item() == 2.0


def test_weights_carry_no_gradient_and_masked_tokens_weigh_one():
    prox = row(-1.0, -1.0).requires_grad_()
    trust, _ = truncated_is(prox, row(-2.0, NAN), prox, torch.tensor([[True, False]]), 5.0)
    assert not trust.weights.requires_grad
    assert trust.weights[0].tolist() == pytest.approx([math.e, 1.0])
    assert uncorrected(prox, row(-2.0, NAN), prox, all_of(prox))[0].weights[0].tolist() == [1.0, 1.0]


# --- KL -------------------------------------------------------------------------------------------


def test_the_estimators_at_a_log_ratio_of_log_two():
    logp, reference = row(-1.0).requires_grad_(), row(-1.0 + math.log(2))
    x = math.log(2)
    for estimator, value, slope in ((kl.k1, -x, 1.0), (kl.k2, x * x / 2, -x), (kl.k3, 1 - x, -(2 - 1))):
        logp.grad = None
        found = estimator(logp, reference)
        found.sum().backward()
        assert found.item() == pytest.approx(value)
        assert logp.grad.item() == pytest.approx(slope)


def test_the_expectation_of_k1_and_k3_is_the_divergence_and_that_of_k2_is_not():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    exact = float((p * np.log(p / q)).sum())
    logp, reference = torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q))
    expected = {name: float((torch.from_numpy(p) * f(logp, reference)).sum()) for name, f in kl.ESTIMATORS.items()}
    assert expected["k1"] == pytest.approx(exact)
    assert expected["k3"] == pytest.approx(exact)
    assert expected["k2"] != pytest.approx(exact, rel=0.01)


# --- reductions -----------------------------------------------------------------------------------

# Group 7 has answers of 1 and 3 tokens, group 8 one of 4, and one without any token that counts.
COUNTS = torch.tensor([1, 3, 4, 0])
GROUPS = torch.tensor([7, 7, 8, 8])


@pytest.mark.parametrize(
    ("kind", "extra", "expected"),
    [
        ("token_mean", {}, [1 / 8, 1 / 8, 1 / 8, 0]),
        ("group_token_mean", {}, [1 / 2 / 4, 1 / 2 / 4, 1 / 2 / 4, 0]),
        ("sequence_mean", {}, [1 / 3 / 1, 1 / 3 / 3, 1 / 3 / 4, 0]),
        ("fixed_length", {"budget": 10}, [1 / 30, 1 / 30, 1 / 30, 0]),
        ("sequence_sum", {}, [1 / 3, 1 / 3, 1 / 3, 0]),
    ],
)
def test_every_reduction_weighs_a_token_as_worked_out_by_hand(kind, extra, expected):
    assert reductions.REDUCTIONS[kind](COUNTS, GROUPS, **extra).tolist() == pytest.approx(expected)


def test_group_token_mean_differs_from_token_mean_when_groups_differ_in_length():
    counts, groups = torch.tensor([1, 1, 6]), torch.tensor([1, 1, 2])
    assert reductions.group_token_mean(counts, groups).tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 12])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.tuples(st.floats(-9, 9), st.booleans()), max_size=5)), min_size=1)
)
def test_reductions_are_the_plain_means(rows):
    width = max(1, *[len(tokens) for _, tokens in rows])
    losses, keep = torch.zeros(len(rows), width, dtype=F), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (_, tokens) in enumerate(rows):
        for t, (value, counts) in enumerate(tokens):
            losses[i, t], keep[i, t] = value, counts
    counts, groups = keep.sum(1), torch.tensor([group for group, _ in rows])

    def found(kind, **extra):
        return weighted_sum(losses, keep, reductions.REDUCTIONS[kind](counts, groups, **extra)).item()

    kept = [(group, [v for v, c in tokens if c]) for group, tokens in rows]
    kept = [(group, values) for group, values in kept if values]
    every = [v for _, values in kept for v in values]
    by_group = {}
    for group, values in kept:
        by_group.setdefault(group, []).extend(values)

    def mean(values):
        values = list(values)
        return sum(values) / len(values) if values else 0.0

    close = {"rel": 1e-9, "abs": 1e-9}
    assert found("token_mean") == pytest.approx(mean(every), **close)
    assert found("group_token_mean") == pytest.approx(mean(mean(v) for v in by_group.values()), **close)
    assert found("sequence_mean") == pytest.approx(mean(mean(v) for _, v in kept), **close)
    assert found("fixed_length", budget=7) == pytest.approx(mean(sum(v) / 7 for _, v in kept), **close)
    assert found("sequence_sum") == pytest.approx(mean(sum(v) for _, v in kept), **close)


def test_rejected_tokens_stay_in_the_denominator():
    losses, weights = row(1.0, 3.0), torch.tensor([1 / 2], dtype=F)
    assert weighted_sum(losses, torch.tensor([[True, False]]), weights).item() == 0.5


def test_what_is_not_kept_may_be_nan():
    losses = row(1.0, NAN).requires_grad_()
    total = weighted_sum(losses, torch.tensor([[True, False]]), torch.tensor([1.0], dtype=F))
    total.backward()
    assert total.item() == 1.0
    assert losses.grad[0].tolist() == [1.0, 0.0]
