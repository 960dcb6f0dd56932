"""Objectives and KL penalties against numbers worked out on paper: values, gradients, facts."""

from __future__ import annotations

import math

import pytest
import torch
from maths_parts import LN2, OBJECTIVES, everywhere, row, slopes

from penstock.learner.algorithms import kl, objectives

NAN = float("nan")
MIDDLE = torch.tensor([[True, False, True]])  # a tool's token between two of the policy's


def test_the_policy_gradient_is_minus_advantage_times_log_prob():
    logp = row(-1.0, NAN, -3.0).requires_grad_()
    losses, facts = objectives.policy_gradient(logp, logp, logp, row(2.0, NAN, -0.5), MIDDLE)
    assert losses[0].tolist() == [2.0, 0.0, -1.5]  # −2·(−1), nothing, −(−0.5)·(−3)
    assert slopes(losses, logp) == [[-2.0, 0.0, 0.5]]
    assert facts == {}


def test_dual_clip_caps_the_loss_of_bad_tokens_that_have_become_likely():
    # A = −1 at r = 4: PPO's loss is 4, capped at 3. A = −2 at r = 2: 4, below the cap of 6. A = +1 at r = 4: 1.2.
    logp = row(2 * LN2, LN2, 2 * LN2).requires_grad_()
    zero, advantages = torch.zeros(1, 3, dtype=torch.float64), row(-1.0, -2.0, 1.0)
    losses, facts = objectives.ppo_clip(logp, zero, zero, advantages, everywhere(zero), 0.2, 0.2, dual_clip=3.0)
    assert losses[0].tolist() == pytest.approx([3.0, 4.0, -1.2])
    assert slopes(losses, logp)[0] == pytest.approx([0.0, 4.0, 0.0])
    assert facts["actor/pg_clipfrac_dual"].tolist() == [[1, 0, 0]]
    assert facts["actor/pg_clipfrac_high"].tolist() == [[0, 0, 1]]
    assert facts["actor/pg_clipfrac_low"].tolist() == [[0, 0, 0]]


def test_without_dual_clip_a_bad_token_that_has_become_likely_is_not_held_back():
    logp = row(10.0).requires_grad_()
    losses, facts = objectives.ppo_clip(logp, row(0.0), row(0.0), row(-1.0), torch.tensor([[True]]), 0.2, 0.2)
    assert losses.item() == pytest.approx(math.exp(10))
    assert slopes(losses, logp)[0] == pytest.approx([math.exp(10)])
    assert "actor/pg_clipfrac_dual" not in facts


def test_a_lower_bound_of_one_never_clips_below():
    logp = row(-50.0).requires_grad_()
    losses, _ = objectives.ppo_clip(logp, row(0.0), row(0.0), row(-1.0), torch.tensor([[True]]), 1.0, 0.2)
    assert losses.item() == pytest.approx(math.exp(-50))
    assert slopes(losses, logp)[0] == pytest.approx([math.exp(-50)])


def test_ppo_with_a_kl_penalty_takes_the_ratio_unclipped_and_pulls_back():
    # β = 2. r = 2, A = 1: −2 + 2(2 − 1 − ln 2) = −2 ln 2, slope −2 + 2(2 − 1) = 0.
    # r = 1/2, A = −1: 1/2 + 2(1/2 − 1 + ln 2) = −1/2 + 2 ln 2, slope 1/2 + 2(1/2 − 1) = −1/2.
    logp = row(LN2 - 1, NAN, -LN2 - 1).requires_grad_()
    prox = row(-1.0, NAN, -1.0)
    losses, facts = objectives.ppo_kl(logp, prox, prox, row(1.0, NAN, -1.0), MIDDLE, coefficient=2.0)
    assert losses[0].tolist() == pytest.approx([-2 * LN2, 0.0, -0.5 + 2 * LN2])
    assert slopes(losses, logp)[0] == pytest.approx([0.0, 0.0, -0.5], abs=1e-12)
    assert facts == {}


def test_gspo_gives_all_tokens_of_an_answer_the_geometric_mean_of_their_ratios():
    # log r = ln 4 and 0, a tool's token between: s = exp((ln 4 + 0)/2) = 2, clipped at 1.5.
    prox = row(-1.0, NAN, -1.0)
    for advantage, value, slope, low, high in ((1.0, -1.5, 0.0, 0, 1), (-1.0, 2.0, 2.0, 0, 0)):
        logp = row(-1.0 + 2 * LN2, NAN, -1.0).requires_grad_()
        losses, facts = objectives.gspo(logp, prox, prox, row(advantage, NAN, advantage), MIDDLE, 0.5, 0.5)
        assert losses[0].tolist() == pytest.approx([value, 0.0, value])
        # Each of two tokens moves s by s/2, and s stands at two tokens.
        assert slopes(losses, logp)[0] == pytest.approx([slope, 0.0, slope])
        assert facts["actor/pg_clipfrac_high"].tolist() == [[high, 0, high]]
        assert facts["actor/pg_clipfrac_low"].tolist() == [[low, 0, low]]


def test_gspo_clips_below_only_answers_that_are_to_become_less_likely():
    prox = row(-1.0, -1.0)
    logp = row(-1.0 - 2 * LN2, -1.0).requires_grad_()  # s = 1/2
    losses, facts = objectives.gspo(logp, prox, prox, row(-1.0, -1.0), everywhere(prox), 0.25, 0.5)
    assert losses[0].tolist() == pytest.approx([0.75, 0.75])
    assert slopes(losses, logp)[0] == pytest.approx([0.0, 0.0])
    assert facts["actor/pg_clipfrac_low"].tolist() == [[1, 1]]


def test_gspo_of_one_token_is_ppo():
    logp, other = row(-0.9).requires_grad_(), row(-0.9).requires_grad_()
    one = torch.tensor([[True]])
    found = objectives.gspo(logp, row(-1.0), row(-1.0), row(0.7), one, 0.2, 0.28)[0]
    expected = objectives.ppo_clip(other, row(-1.0), row(-1.0), row(0.7), one, 0.2, 0.28)[0]
    assert found.item() == expected.item()
    assert slopes(found, logp) == slopes(expected, other)


def test_cispo_cuts_the_weight_and_keeps_the_gradient():
    # π/μ = 4, cut at 3, A = 2, log π = −1: −3·2·(−1) = 6, slope −6. π/μ = 1/2, A = −1, log π = −2: −1, slope 1/2.
    logp = row(-1.0, NAN, -2.0).requires_grad_()
    sampler = row(-1.0 - 2 * LN2, NAN, -2.0 + LN2)
    losses, facts = objectives.cispo(logp, row(9.0, 9.0, 9.0), sampler, row(2.0, NAN, -1.0), MIDDLE, max_weight=3.0)
    assert losses[0].tolist() == pytest.approx([6.0, 0.0, -1.0])
    assert slopes(losses, logp)[0] == pytest.approx([-6.0, 0.0, 0.5])
    assert facts["actor/pg_clipfrac_high"].tolist() == [[1, 0, 0]]


def test_cispo_counts_a_cut_weight_whatever_the_sign_of_the_advantage():
    one = torch.tensor([[True]])
    for advantage in (1.0, -1.0):
        _, facts = objectives.cispo(row(0.0), row(0.0), row(-3.0), row(advantage), one, max_weight=5.0)
        assert facts["actor/pg_clipfrac_high"].item() == 1


def test_the_pieces_of_mirror_descent_add_up_to_the_answers_loss():
    # log r = ln 2 and −2 ln 2, so S = −ln 2; log π(y) = −1 − 3; A = 1, τ = 1/2.
    # Whole loss: 4 + ¼ (ln 2)². Slope of each token: −A + τ S = −1 − ½ ln 2.
    logp = row(-1.0, NAN, -3.0).requires_grad_()
    prox = row(-1.0 - LN2, NAN, -3.0 + 2 * LN2)
    losses, facts = objectives.mirror_descent(logp, prox, prox, row(1.0, NAN, 1.0), MIDDLE, tau=0.5)
    assert losses.sum().item() == pytest.approx(4 + 0.25 * LN2**2)
    assert losses[0].tolist() == pytest.approx([1 - 0.25 * LN2**2, 0.0, 3 + 0.5 * LN2**2])
    assert slopes(losses, logp)[0] == pytest.approx([-1 - 0.5 * LN2, 0.0, -1 - 0.5 * LN2])
    assert facts == {}


def test_mirror_descent_with_weights_per_token_would_push_away_which_is_why_they_are_refused():
    # log r = (1, −0.9), so S = 0.1. Whole: S²/2 = 0.005, gradient S for both. Weighed 0.1 and 2: S/2·(0.1 − 1.8) < 0.
    logp = row(0.0, -1.9).requires_grad_()
    losses, _ = objectives.mirror_descent(logp, row(-1.0, -1.0), row(-1.0, -1.0), row(0.0, 0.0), everywhere(logp), 1.0)
    assert losses.sum().item() == pytest.approx(0.005)
    assert slopes(losses, logp)[0] == pytest.approx([0.1, 0.1])
    assert (losses * row(0.1, 2.0)).sum().item() == pytest.approx(-0.085)


def test_mirror_descent_pulls_an_answer_back_however_far_it_has_moved():
    logp = row(-200.0, -200.0).requires_grad_()
    losses, _ = objectives.mirror_descent(logp, row(-1.0, -1.0), row(-1.0, -1.0), row(0.0, 0.0), everywhere(logp), 0.1)
    assert losses.sum().item() == pytest.approx(0.05 * 398**2)
    assert slopes(losses, logp)[0] == pytest.approx([-39.8, -39.8])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_on_policy_every_objective_has_the_gradient_of_the_policy(name):
    # One answer of one token, and answers on which all tokens share the advantage: at π = π_prox = μ all agree.
    for values in ([-1.3], [-0.2, -1.5, -3.0]):
        logp = row(*values).requires_grad_()
        advantages = torch.full_like(logp, -0.6)
        losses, facts = OBJECTIVES[name](logp, logp.detach(), logp.detach(), advantages, everywhere(logp))
        assert slopes(losses, logp)[0] == pytest.approx([0.6] * len(values))
        assert all(not fact.any() for fact in facts.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_answer_without_tokens_that_count_has_neither_loss_nor_gradient(name):
    logp = row(NAN, -1.0).requires_grad_()
    losses, facts = OBJECTIVES[name](logp, logp.detach(), logp.detach(), row(1.0, NAN), torch.zeros(1, 2).bool())
    assert losses.tolist() == [[0.0, 0.0]]
    assert slopes(losses, logp) == [[0.0, 0.0]]
    assert all(not fact.any() for fact in facts.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_equal_rewards_leave_no_gradient_where_nothing_has_moved(name):
    logp = row(-1.0, -2.0).requires_grad_()
    losses, _ = OBJECTIVES[name](logp, logp.detach(), logp.detach(), torch.zeros_like(logp), everywhere(logp))
    assert slopes(losses, logp) == [[0.0, 0.0]]


# --- KL penalties ---------------------------------------------------------------------------------


def test_the_penalties_and_their_slopes_at_a_log_ratio_of_minus_log_two():
    # x = log π_ref/π = −ln 2: k2 = (ln 2)²/2, slope −x = ln 2; k3 = ½ − 1 + ln 2, slope 1 − eˣ = ½.
    # π/μ = 4: unbiased = 4·k3, slope 4·k3 + 4·½ = −π/μ·x = 4 ln 2.
    for name, value, slope in (
        ("k2", LN2**2 / 2, LN2),
        ("k3", LN2 - 0.5, 0.5),
        ("unbiased", 4 * (LN2 - 0.5), 4 * LN2),
    ):
        logp = row(-1.0).requires_grad_()
        found = kl.PENALTIES[name](logp, row(-1.0 - LN2), row(-1.0 - 2 * LN2))
        assert found.item() == pytest.approx(value)
        assert slopes(found, logp)[0] == pytest.approx([slope])


def test_k3_of_near_policies_keeps_its_digits():
    # eˣ − 1 − x at x = 1e−8 is x²/2 = 5e−17; taken apart in doubles, eˣ − 1 alone has an error of 1e−16.
    assert kl.k3(row(-1.0), row(-1.0 + 2.0**-27)).item() == pytest.approx(2.0**-55, rel=1e-6, abs=0)
