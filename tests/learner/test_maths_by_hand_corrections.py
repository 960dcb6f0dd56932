"""Weights, masks and ranges against numbers worked out on paper."""

from __future__ import annotations

import math

import pytest
import torch
from maths_parts import LN2, TRUSTS, everywhere, row, slopes

from penstock.learner.algorithms import corrections, objectives, ranges, rejections

INF, NAN = math.inf, float("nan")
MIDDLE = torch.tensor([[True, False, True]])  # a tool's token between two of the policy's


def test_masked_weights_are_the_ratio_within_the_bounds_and_nothing_beyond():
    # π_prox/μ = 8, 4, 1/2, 1/4 with bounds 0.4 and 5.
    prox = row(0.0, 0.0, 0.0, 0.0)
    sampler = row(-3 * LN2, -2 * LN2, LN2, 2 * LN2)
    trust, facts = corrections.masked_is(prox, sampler, prox, everywhere(prox), 0.4, 5.0)
    assert trust.keep.tolist() == [[False, True, True, False]]
    assert trust.weights[0].tolist() == pytest.approx([1, 4, 0.5, 1])
    assert facts["rollout_corr/masked"].tolist() == [[1, 0, 0, 1]]


def test_a_lower_bound_of_nothing_keeps_even_an_impossible_token():
    trust, _ = corrections.masked_is(row(-INF), row(-1.0), row(1.0), torch.tensor([[True]]), 0.0, 5.0)
    assert trust.keep.item()
    assert trust.weights.item() == 0


def test_a_token_left_out_for_an_infinite_weight_leaves_no_nan_behind():
    logp = row(-1.0, -1.0).requires_grad_()
    trust, _ = corrections.masked_is(logp.detach(), row(-2000.0, -1.0), logp, everywhere(logp), 0.5, 5.0)
    losses, _ = objectives.policy_gradient(logp, logp, logp, row(1.0, 1.0), everywhere(logp))
    kept = torch.where(trust.keep, trust.weights * losses, 0.0)
    assert slopes(kept, logp) == [[0.0, -1.0]]


def test_decoupled_weights_are_uncut_and_bounded_ones_left_out():
    prox, sampler = row(0.0, NAN, 0.0), row(-3 * LN2, NAN, LN2)
    trust, facts = corrections.decoupled(prox, sampler, prox, MIDDLE, max_weight=None)
    assert trust.weights[0].tolist() == pytest.approx([8, 1, 0.5])
    assert trust.keep.tolist() == [[True, False, True]]
    trust, facts = corrections.decoupled(prox, sampler, prox, MIDDLE, max_weight=5.0)
    assert trust.weights[0].tolist() == pytest.approx([1, 1, 0.5])
    assert trust.keep.tolist() == [[False, False, True]]
    assert facts["rollout_corr/masked"].tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("aggregate", "beyond", "weight", "keep"),
    [
        ("product", "clip", 3.0, True),  # 8·½ = 4, cut at 3
        ("product", "mask", 1.0, False),
        ("geometric_mean", "clip", 2.0, True),  # √4
        ("geometric_mean", "mask", 2.0, True),
    ],
)
def test_an_answer_has_one_weight_from_the_product_or_the_geometric_mean(aggregate, beyond, weight, keep):
    prox, sampler = row(0.0, NAN, 0.0), row(-3 * LN2, NAN, LN2)
    trust, facts = corrections.sequence_is(prox, sampler, prox, MIDDLE, aggregate, beyond, 3.0)
    assert trust.weights[0].tolist() == pytest.approx([weight, 1.0, weight])
    assert trust.keep.tolist() == [[keep, False, keep]]
    name = "rollout_corr/clipfrac" if beyond == "clip" else "rollout_corr/masked"
    changed = 1.0 if aggregate == "product" else 0.0
    assert facts[name].tolist() == [[changed, 0.0, changed]]
    assert not facts["actor/out_of_range"].any()


def test_an_answer_whose_product_leaves_the_range_of_floats_is_masked_and_counted():
    # Three tokens of 30 nats each: e^90 is beyond float32. The geometric mean, e^30, is not.
    prox, sampler = torch.zeros(1, 3), torch.full((1, 3), -30.0)
    trust, facts = corrections.sequence_is(prox, sampler, prox, everywhere(prox), "product", "clip", 3.0)
    assert not trust.keep.any()
    assert trust.weights.tolist() == [[1.0, 1.0, 1.0]]
    assert facts["actor/out_of_range"].tolist() == [[1, 1, 1]]
    assert facts["rollout_corr/clipfrac"].tolist() == [[0, 0, 0]]
    trust, facts = corrections.sequence_is(prox, sampler, prox, everywhere(prox), "geometric_mean", "clip", 3.0)
    assert trust.weights.tolist() == [[3.0, 3.0, 3.0]]


@pytest.mark.parametrize("name", TRUSTS)
def test_on_policy_every_weight_is_one_and_nothing_is_left_out(name):
    prox = row(-1.0, -INF, -3.0)
    trust, facts = TRUSTS[name](prox, prox, prox, MIDDLE)
    assert trust.weights.tolist() == [[1.0, 1.0, 1.0]]
    assert trust.keep.tolist() == MIDDLE.tolist()
    assert all(not fact.any() for fact in facts.values())


@pytest.mark.parametrize("name", TRUSTS)
def test_no_weight_carries_a_gradient(name):
    prox = row(-1.0, -2.0).requires_grad_()
    trust, _ = TRUSTS[name](prox, row(-1.1, -2.2), prox, everywhere(prox))
    assert not trust.weights.requires_grad


# --- rejections -----------------------------------------------------------------------------------


def test_a_bad_answer_is_left_out_when_the_sampler_was_too_far_from_the_policy():
    # log μ/π over the tokens that count: 0.3 and 0.1, mean 0.2.
    prox, sampler = row(-1.3, NAN, -1.1), row(-1.0, NAN, -1.0)
    for advantage, most, kept in ((-1.0, 0.15, False), (-1.0, 0.25, True), (1.0, 0.15, True), (0.0, 0.15, True)):
        advantages = row(advantage, NAN, advantage)
        keep, facts = rejections.off_policy_sequence(prox, sampler, advantages, MIDDLE, INF, most)
        assert keep.tolist() == [[kept, False, kept]]
        assert facts["rollout_corr/rejected"].tolist() == [[1.0 - kept, 0.0, 1.0 - kept]]


def test_of_an_answer_with_advantages_of_both_signs_only_the_negative_tokens_are_left_out():
    prox, sampler = row(-2.0, -2.0), row(-1.0, -1.0)
    keep, _ = rejections.off_policy_sequence(prox, sampler, row(-1.0, 1.0), everywhere(prox), INF, 0.5)
    assert keep.tolist() == [[False, True]]


def test_a_sampler_that_found_the_answer_less_likely_never_has_it_left_out():
    keep, _ = rejections.off_policy_sequence(row(-1.0), row(-9.0), row(-1.0), torch.tensor([[True]]), INF, 0.1)
    assert keep.item()


def test_the_fewest_tokens_are_left_out_that_bring_the_second_moment_under_its_bound():
    # Squares 0.01 0.04 0.25 0.25 4: their running means are 0.01 0.025 0.1 0.1375 0.91.
    ratios = torch.tensor([0.5, -0.1, 2.0, -0.5, 0.2], dtype=torch.float64)
    for most, bound in ((0.2, (0.25 + 4) / 2), (0.05, (0.04 + 0.25) / 2), (0.91, INF), (0.005, 0.0)):
        assert rejections.second_moment_bound(ratios, most) == pytest.approx(bound)
    # Between 0.1 and 0.1375 one of the equal squares could stay; they go together.
    assert rejections.second_moment_bound(ratios, 0.12) == pytest.approx((0.04 + 0.25) / 2)
    keep, facts = rejections.second_moment(
        ratios.unsqueeze(0), torch.zeros(1, 5), ratios, torch.ones(1, 5).bool(), (0.25 + 4) / 2
    )
    assert keep.tolist() == [[True, True, False, True, True]]
    assert facts["rollout_corr/rejected"].tolist() == [[0, 0, 1, 0, 0]]


def test_a_second_moment_that_is_just_the_bound_leaves_nothing_out():
    assert rejections.second_moment_bound(torch.tensor([1.0, 2.0]), 2.5) == INF  # (1 + 4)/2
    keep, _ = rejections.second_moment(row(2.0), row(0.0), row(1.0), torch.tensor([[True]]), 4.0)
    assert keep.item()


def test_log_ratios_that_single_precision_cannot_tell_apart_fall_on_the_sides_that_the_bound_says():
    prox, sampler = row(-2.0, -2.0).float(), row(-(2.0**-26), -(2.0**-25)).float()
    assert (prox - sampler).tolist() == [[-2.0, -2.0]]
    ratios = (prox.double() - sampler.double())[0]
    assert ratios.tolist() == [-2 + 2**-26, -2 + 2**-25]
    bound = rejections.second_moment_bound(ratios, float(ratios[1].square()) + 1e-12)
    keep, _ = rejections.second_moment(prox, sampler, row(1.0, 1.0), everywhere(prox), bound)
    assert keep.tolist() == [[False, True]]


def test_a_batch_without_tokens_and_one_with_nan_have_no_bound_on_the_second_moment():
    assert rejections.second_moment_bound(torch.tensor([]), 0.1) == INF
    assert rejections.second_moment_bound(torch.tensor([0.1, NAN, 5.0]), 0.1) == INF


# --- range ----------------------------------------------------------------------------------------


def test_tokens_whose_log_probs_lie_more_than_eighty_nats_apart_are_masked_and_counted():
    logp, prox, sampler = row(-1.0, -1.0, -81.0, -90.0), row(-1.0, -81.0, -1.0, -5.0), row(-1.0, -41.5, -0.5, -6.0)
    mask = torch.tensor([[True, True, True, False]])
    found, facts = ranges.within_range(mask, logp, prox, sampler)
    assert found.tolist() == [[True, True, False, False]]  # exactly 80 apart is within
    assert facts["actor/out_of_range"].tolist() == [[0, 0, 1, 0]]


def test_a_token_that_one_policy_holds_impossible_is_out_of_range():
    found, _ = ranges.within_range(torch.ones(1, 2).bool(), row(-INF, -1.0), row(-1.0, -1.0), row(-1.0, -INF))
    assert found.tolist() == [[False, False]]


def test_nan_passes_the_range_guard_so_that_the_update_is_skipped_for_it():
    # Also a token that is impossible under all policies: nobody can have drawn it.
    found, facts = ranges.within_range(torch.ones(1, 3).bool(), row(NAN, -1.0, -INF), row(-1.0, NAN, -INF))
    assert found.all()
    assert not facts["actor/out_of_range"].any()


def test_facts_of_the_same_name_are_added():
    one, other = {"a": row(1.0, 0.0), "b": row(1.0, 1.0)}, {"a": row(0.0, 1.0)}
    found = ranges.combined(one, other, {})
    assert found["a"].tolist() == [[1, 1]]
    assert found["b"].tolist() == [[1, 1]]
