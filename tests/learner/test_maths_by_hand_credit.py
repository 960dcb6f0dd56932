"""Advantages, credit, values and controllers against numbers worked out on paper."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from maths_parts import LN2, F, everywhere, row, slopes

from penstock.learner.algorithms import advantages, controllers, credit, values

NAN = float("nan")
MIDDLE = torch.tensor([[True, False, True]])  # a tool's token between two of the policy's


def flat(*numbers):
    return torch.tensor(numbers, dtype=F)


# --- baselines ------------------------------------------------------------------------------------


def test_leave_one_out_compares_with_the_others():
    # 6 against (1 + 2)/2, 1 against (6 + 2)/2, 2 against (6 + 1)/2; the unscored is nobody's baseline.
    scored = torch.tensor([True, True, False, True])
    found = advantages.leave_one_out(flat(6, 1, 100, 2), scored)
    assert found.tolist() == pytest.approx([4.5, -3, 0, -1.5])


def test_the_mean_of_the_other_prompts_is_the_baseline_of_all_of_a_prompts_answers():
    # Group 3: 1 and 3. Group 5: 5, and 9 unscored. Group 8: 0. Others of 3: (5 + 0)/2, of 5: 4/3, of 8: 9/3.
    groups, scored = torch.tensor([3, 5, 3, 8, 5]), torch.tensor([True, True, True, True, False])
    found = advantages.others_mean(flat(1, 5, 3, 0, 9), groups, scored)
    assert found.tolist() == pytest.approx([1 - 2.5, 5 - 4 / 3, 3 - 2.5, -3, 0])


def test_a_single_prompt_has_no_others_and_keeps_its_rewards():
    found = advantages.others_mean(flat(1, 3), torch.tensor([4, 4]), torch.tensor([True, True]))
    assert found.tolist() == [1, 3]


def test_groups_of_one_are_allowed_where_the_baseline_is_not_the_groups():
    groups, scored = torch.tensor([0, 1]), torch.tensor([True, True])
    assert advantages.others_mean(flat(1, 3), groups, scored).tolist() == [-2, 2]
    assert advantages.no_baseline(flat(1, 3), groups, scored).tolist() == [1, 3]


def test_a_baseline_of_the_group_gives_a_single_scored_member_nothing():
    scored = torch.tensor([True, False])
    for function in (advantages.group_mean, advantages.leave_one_out):
        assert function(flat(3, NAN), scored).tolist() == [0, 0]
    assert advantages.group_zscore(flat(3, NAN), scored, 1e-4).tolist() == [0, 0]


def test_an_unscored_answers_reward_may_be_anything():
    scored = torch.tensor([True, False, True])
    groups = torch.tensor([0, 0, 1])
    assert advantages.no_baseline(flat(1, NAN, 2), groups, scored).tolist() == [1, 0, 2]
    assert advantages.others_mean(flat(1, NAN, 2), groups, scored).tolist() == [-1, 0, 1]
    assert advantages.leave_one_out(flat(1, NAN, 2), scored).tolist() == [-1, 0, 1]
    assert advantages.whiten(flat(1, NAN, 3), scored, 1e-8).tolist() == pytest.approx([-1 / 2**0.5, 0, 1 / 2**0.5])


def test_whitening_brings_the_scored_to_mean_nothing_and_deviation_one():
    # 1 3 5: mean 3, variance (4 + 0 + 4)/2 = 4.
    found = advantages.whiten(flat(1, 3, 7, 5), torch.tensor([True, True, False, True]), 0.5)
    assert found.tolist() == pytest.approx([-2 / 2.5, 0, 0, 2 / 2.5])


def test_whitening_equal_advantages_gives_nothing_and_one_alone_is_left():
    assert advantages.whiten(flat(0.1, 0.1, 0.1), torch.ones(3).bool(), 1e-8).tolist() == [0, 0, 0]
    assert advantages.whiten(flat(2.0, 0.0), torch.tensor([True, False]), 1e-8).tolist() == [2, 0]


# --- credit without values ------------------------------------------------------------------------


def test_step_scores_fall_as_differences_and_the_outcome_at_the_last_action():
    # Steps end at tokens 1 and 3 with 0.5 and 0.2; token 4 is a tool's; the outcome of 1 falls to token 3.
    actions = torch.tensor([True, True, True, True, False])
    found = credit.token_rewards(1.0, actions, [(1, 0.5), (3, 0.2)])
    assert found.tolist() == pytest.approx([0, 0.5, 0, 1 - 0.3, 0])


def test_an_answer_without_actions_gets_nothing():
    assert credit.token_rewards(1.0, torch.tensor([False, False])).tolist() == [0, 0]
    nothing = flat(0, 0)
    assert credit.discounted_return(nothing, nothing.bool(), 0.0, 0.5).tolist() == [0, 0]


def test_discounted_returns_skip_a_tools_tokens_and_keep_what_falls_to_them():
    # Actions at 0, 1, 3; rewards 1, 0, 2 (at the tool's token, so for action 1), 4; γ = ½, no baseline (b = 7 − 7).
    # Returns: 4; 2 + ½·4 = 4; 1 + ½·4 = 3.
    actions = torch.tensor([True, True, False, True])
    found = credit.discounted_return(flat(1, 0, 2, 4), actions, 7.0, 0.5)
    assert found.tolist() == pytest.approx([3, 4, 0, 4])
    # An advantage of 5 on rewards of 7 says that the baseline is 2.
    found = credit.discounted_return(flat(1, 0, 2, 4), actions, 5.0, 0.5)
    assert found.tolist() == pytest.approx([1, 2, 0, 2])


def test_what_falls_to_tokens_before_the_first_action_is_in_no_return_and_in_no_baseline():
    # Token 0 is not the policy's. Rewards 8, 1, 2, an advantage of 2.5: b = 1 + 2 − 2.5, and 3 − b = 2.5, 2 − b = 1.5.
    actions = torch.tensor([False, True, True])
    found = credit.discounted_return(flat(8, 1, 2), actions, 2.5, 1.0)
    assert found.tolist() == pytest.approx([0, 2.5, 1.5])


def test_undiscounted_with_the_outcome_alone_every_action_gets_the_answers_advantage():
    actions = torch.tensor([True, False, True])
    for found in (
        credit.discounted_return(flat(0, 0, 3), actions, -0.5, 1.0),
        credit.outcome(flat(0, 0, 3), actions, -0.5),
    ):
        assert found.tolist() == pytest.approx([-0.5, 0, -0.5])


# --- credit from values ---------------------------------------------------------------------------


def test_gae_by_hand():
    # γ = λ = ½, V = 1 2 4, R = 0 0 8. δ = ½·2 − 1, ½·4 − 2, 8 − 4 = 0 0 4. A = 4/16, 4/4, 4. Returns A + V.
    value, rewards = row(1.0, 2.0, 4.0), row(0.0, 0.0, 8.0)
    found, returns = credit.gae(rewards, value, flat(0), value, value, everywhere(value), 0.5, 0.5)
    assert found[0].tolist() == pytest.approx([0.25, 1, 4])
    assert returns[0].tolist() == pytest.approx([1.25, 3, 8])


def test_gae_skips_a_tools_tokens_whatever_stands_there():
    value = row(1.0, NAN, 2.0, math.inf, 4.0, NAN)
    rewards = row(0.0, 0.0, 0.0, 0.0, 8.0, 0.0)
    mask = torch.tensor([[True, False, True, False, True, False]])
    found, returns = credit.gae(rewards, value, flat(0), value, value, mask, 0.5, 0.5)
    assert found[0].tolist() == pytest.approx([0.25, 0, 1, 0, 4, 0])
    assert returns[0].tolist() == pytest.approx([1.25, 0, 3, 0, 8, 0])


def test_what_falls_to_a_tools_token_counts_for_the_action_before():
    # As above with R = 0 | 8 at the tool's token | 0: δ = 8 + ½·4 − 2 = 8 and 0 − 4 = −4; A = 8 − ¼·4, −4.
    found, _ = credit.gae(row(0.0, 8.0, 0.0), row(2.0, NAN, 4.0), flat(0), row(), row(), MIDDLE, 0.5, 0.5)
    assert found[0].tolist() == pytest.approx([7, 0, -4])


def test_an_answer_that_goes_on_is_bootstrapped_and_one_that_ended_is_not():
    value, rewards = torch.cat([row(1.0, 2.0)] * 2), torch.zeros(2, 2, dtype=F)
    found, _ = credit.gae(rewards, value, flat(0, 6), value, value, everywhere(value), 0.5, 1.0)
    # Ended: δ = 0, −2. Goes on with V = 6: δ = 0, 3 − 2.
    assert found.tolist() == [[-1.0, -2.0], [0.5, 1.0]]


def test_at_lambda_one_gae_is_the_return_less_the_value_and_at_nothing_the_temporal_difference():
    value, rewards = row(1.0, 2.0, 4.0), row(1.0, 2.0, 3.0)
    for lam, expected in ((1.0, [6 - 1, 5 - 2, 3 - 4]), (0.0, [1 + 2 - 1, 2 + 4 - 2, 3 - 4])):
        found, _ = credit.gae(rewards, value, flat(0), value, value, everywhere(value), 1.0, lam)
        assert found[0].tolist() == pytest.approx(expected)


def test_vtrace_by_hand():
    # γ = ½, V = 1 2, R = 0 4, π/μ = 2 and ½, bounds 1: ρ = c = 1 ½. δ = ½·2 − 1, 4 − 2 = 0 2.
    # v₂ = 2 + ½·2 = 3, v₁ = 1 + 0 + ½·1·(3 − 2) = 1.5. A₂ = ½(4 − 2) = 1, A₁ = ½·3 − 1 = ½.
    prox, sampler = row(LN2, NAN, 0.0), row(0.0, NAN, LN2)
    found, returns = credit.vtrace(
        row(0.0, 0.0, 4.0), row(1.0, NAN, 2.0), flat(0), prox, sampler, MIDDLE, 0.5, 1.0, 1.0, 1.0
    )
    assert found[0].tolist() == pytest.approx([0.5, 0, 1])
    assert returns[0].tolist() == pytest.approx([1.5, 0, 3])


def test_vtrace_with_wider_bounds_and_a_lambda_by_hand():
    # The same with ρ̄ = 2, c̄ = 1.5, λ = ½: ρ = 2 ½, c = ¾ ¼. v₂ = 3, v₁ = 1 + 2·0 + ½·¾·1 = 1.375.
    # A₂ = 1, A₁ = 2(½·3 − 1) = 1. Bootstrapped with 4: δ₂ = 4 + 2 − 2, v₂ = 4, v₁ = 1 + 3/8·2; A = 2(½·4 − 1), ½·4.
    prox, sampler = torch.cat([row(LN2, 0.0)] * 2), torch.cat([row(0.0, LN2)] * 2)
    rewards, value = torch.cat([row(0.0, 4.0)] * 2), torch.cat([row(1.0, 2.0)] * 2)
    found, returns = credit.vtrace(rewards, value, flat(0, 4), prox, sampler, everywhere(prox), 0.5, 0.5, 2.0, 1.5)
    assert returns.tolist() == [pytest.approx([1.375, 3]), pytest.approx([1.75, 4])]
    assert found.tolist() == [pytest.approx([1, 1]), pytest.approx([2, 2])]


def test_on_policy_vtrace_gives_the_returns_of_gae():
    generator = torch.Generator().manual_seed(3)
    rewards, value, logp = torch.randn(3, 2, 7, generator=generator, dtype=F)
    mask, last = torch.rand(2, 7, generator=generator) > 0.3, flat(0, 1.5)
    _, expected = credit.gae(rewards, value, last, logp, logp, mask, 0.9, 0.8)
    _, found = credit.vtrace(rewards, value, last, logp, logp, mask, 0.9, 0.8, 1.0, 1.0)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("function", [credit.gae, lambda *a: credit.vtrace(*a, 1.0, 1.0)])
def test_credit_of_one_token_and_of_none_and_without_a_gradient(function):
    value = row(3.0, 5.0).requires_grad_()
    mask = torch.tensor([[True, False]])
    found, returns = function(row(4.0, 0.0), value, flat(0), value, value, mask, 0.9, 0.5)
    assert found.tolist() == [[1.0, 0.0]]
    assert returns.tolist() == [[4.0, 0.0]]
    assert not found.requires_grad
    assert not returns.requires_grad
    nothing, _ = function(row(4.0, 0.0), value, flat(7), value, value, torch.zeros(1, 2).bool(), 0.9, 0.5)
    assert nothing.tolist() == [[0.0, 0.0]]


# --- the value model ------------------------------------------------------------------------------


def test_the_value_loss_is_half_the_larger_of_two_squared_errors():
    # Ĝ = 2, V_old = 0, clip ½. V = 1: held at ½, (½ − 2)² = 9/4 against 1 → 9/8, no slope.
    # V = 3: held at ½, 9/4 against 1 → 9/8, no slope. V = ¼: not held, (7/4)²/2, slope −7/4.
    # V = −4: held at −½, 25/4 against 36 → 18, slope −6.
    new = row(1.0, 3.0, 0.25, -4.0).requires_grad_()
    old, goal = torch.zeros(1, 4, dtype=F), torch.full((1, 4), 2.0, dtype=F)
    losses, facts = values.value_loss(new, old, goal, everywhere(new), 0.5)
    assert losses[0].tolist() == pytest.approx([9 / 8, 9 / 8, 49 / 32, 18])
    assert slopes(losses, new)[0] == pytest.approx([0, 0, -7 / 4, -6])
    assert facts["critic/clipfrac"].tolist() == [[1, 1, 0, 0]]
    assert facts["critic/error"][0].tolist() == pytest.approx([0.5, 0.5, 49 / 32, 18])


def test_an_unclipped_value_loss_is_half_the_squared_error_and_ignores_the_rest():
    new = row(1.0, NAN, 3.0).requires_grad_()
    losses, facts = values.value_loss(new, row(NAN, NAN, NAN), row(2.0, NAN, 0.0), MIDDLE, None)
    assert losses.tolist() == [[0.5, 0.0, 4.5]]
    assert slopes(losses, new) == [[-1.0, 0.0, 3.0]]
    assert "critic/clipfrac" not in facts


def test_a_value_that_has_not_left_its_interval_is_not_counted_as_clipped_for_rounding():
    new, old = row(0.3), row(0.8)  # 0.8 + (0.3 − 0.8) is a little more than 0.3 in doubles
    _, facts = values.value_loss(new, old, row(0.0), torch.tensor([[True]]), 0.6)
    assert facts["critic/clipfrac"].item() == 0


def test_explained_variance_by_hand_over_two_shares():
    # G = 1 3 | 5, V = 1 4 | 4: errors 0 −1 1, mean 0, variance 2/3; returns' variance 8/3. 1 − 1/4.
    one = values.error_sums(row(1.0, 9.0, 4.0), row(1.0, NAN, 3.0), MIDDLE)
    other = values.error_sums(row(4.0), row(5.0), torch.tensor([[True]]))
    assert one.tolist() == [2, -1, 1, 4, 10]
    assert values.explained_variance(*(one + other).tolist()) == pytest.approx(0.75)


def test_a_constant_explains_nothing_and_equal_returns_have_nothing_to_explain():
    goal = row(0.0, 1.0, 5.0)
    sums = values.error_sums(torch.full_like(goal, 7.0), goal, everywhere(goal))
    assert values.explained_variance(*sums.tolist()) == pytest.approx(0)
    equal = torch.full((1, 7), 0.1, dtype=F)
    sums = values.error_sums(torch.zeros_like(equal), equal, everywhere(equal))
    assert math.isnan(values.explained_variance(*sums.tolist()))
    assert math.isnan(values.explained_variance(0, 0, 0, 0, 0))


# --- controllers ----------------------------------------------------------------------------------

WIDE = {"min_coefficient": 1e-9, "max_coefficient": 1e9}
RULES = [
    functools.partial(controllers.doubling, target=0.1),
    functools.partial(controllers.proportional, target=0.1, gain=1.0),
]


@pytest.mark.parametrize("rule", RULES)
def test_a_coefficient_stays_within_its_bounds_and_comes_back_from_them(rule):
    def after(start, measured, times):
        for _ in range(times):
            start = rule(start, measured, min_coefficient=0.01, max_coefficient=5.0)
        return start

    assert after(1.0, 0.0, 2000) == 0.01
    assert after(1.0, 99.0, 2000) == 5.0
    assert after(0.01, 99.0, 1) > 0.01
    assert after(5.0, 0.0, 1) < 5.0
    # One that the run began with beyond a bound stays there until it is to come back.
    assert (after(0.001, 0.0, 1), after(9.0, 99.0, 1)) == (0.001, 9.0)
    assert after(9.0, 0.0, 1) < 9.0


@pytest.mark.parametrize("rule", RULES)
def test_a_measurement_that_is_no_number_moves_nothing(rule):
    assert rule(0.2, math.nan, **WIDE) == 0.2


@pytest.mark.parametrize(("measured", "expected"), [(0.16, 0.4), (0.14, 0.2), (0.07, 0.2), (0.06, 0.1)])
def test_the_coefficient_doubles_above_one_and_a_half_targets_and_halves_below_two_thirds(measured, expected):
    assert controllers.doubling(0.2, measured, 0.1, **WIDE) == pytest.approx(expected)


@pytest.mark.parametrize(("measured", "expected"), [(0.11, 0.2 * 1.01), (0.5, 0.2 * 1.02), (0.0, 0.2 * 0.98)])
def test_the_proportional_rule_follows_the_relative_error_up_to_a_fifth(measured, expected):
    assert controllers.proportional(0.2, measured, 0.1, 0.1, **WIDE) == pytest.approx(expected)


def test_a_fixed_coefficient_stays():
    assert controllers.fixed(0.2, 99.0) == 0.2
