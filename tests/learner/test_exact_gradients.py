"""The expectation of every estimator, enumerated, against exact gradients and the closed forms of known biases."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks import exact, exact_steps
from benchmarks import exact_forms as forms
from benchmarks import exact_worlds as worlds
from benchmarks.exact_case import TOLERANCE
from penstock.learner.algorithms import table

CASES = [(part, case) for part in exact.PARTS for case in part.cases]
PROVEN = [
    pytest.param(case, id=f"{part.title}: {case.name} ({case.estimator.world.name}, {case.estimator.setting})")
    for part, case in CASES
    if case.form is not None
]
WORLDS = (worlds.SEQUENCES, worlds.VARIED, worlds.MDP, worlds.TWO_PROMPTS, worlds.ONE_TOKEN, exact_steps.STEPS)


@pytest.mark.parametrize("case", PROVEN)
def test_an_expectation_is_what_theory_says(case):
    assert case.mistake() <= TOLERANCE


def test_what_is_called_biased_is_far_from_its_target():
    """So that agreement to 1e-9 elsewhere means something."""
    biased = [case for _, case in CASES if not case.unbiased]
    assert len(biased) > 50
    assert min(case.distance().bias for case in biased) > 0.01


def test_every_row_of_the_table_is_shown_as_it_is_on_policy_and_stale():
    for part in exact.PARTS[:2]:
        plain = {case.name for case in part.cases}
        assert set(table.rows()) <= plain, part.title


def test_the_page_is_what_the_command_makes():
    """Word by word; numbers by their value, whose last digit another processor's rounding may turn."""
    old, new = (re.split(r"(-?\d+\.\d+)", text) for text in (exact.PAGE.read_text(encoding="utf-8"), exact.page()))
    assert old[::2] == new[::2], "docs/exact-gradients.md is old; run: make exact"
    assert [float(x) for x in old[1::2]] == pytest.approx([float(x) for x in new[1::2]], rel=0.011)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_answers_of_a_world_are_all_there_are(world):
    table_of = worlds.policies(world, "apart").now
    for prompt in range(world.prompt_count):
        assert float(world.likelihood(table_of)[world.prompts == prompt].sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_exact_gradient_is_the_slope_of_the_expected_return(world):
    """By central differences, which know nothing of scores or probabilities of answers."""
    now = worlds.policies(world, "on").now
    found, step = forms.policy_gradient(world, now), 1e-5
    for place in range(now.numel()):
        nudge = torch.zeros_like(now).flatten()
        nudge[place] = step
        higher, lower = (forms.expected_return(world, now + sign * nudge.reshape(now.shape)) for sign in (1, -1))
        assert float(found.flatten()[place]) == pytest.approx(float(higher - lower) / (2 * step), abs=1e-9)


def test_by_hand_the_rewards_of_an_answer_that_is_judged_step_by_step():
    world, scores = exact_steps.STEPS, exact_steps.SCORES
    for rewards, outcome, (first, second, last) in zip(world.rewards, exact_steps.OUTCOMES, scores, strict=True):
        wanted = [0.0, float(first), 0.0, float(second - first), float(last - second + outcome)]
        assert rewards.tolist() == pytest.approx(wanted, abs=1e-15)
    assert torch.allclose(world.returns, exact_steps.OUTCOMES + scores[:, -1], rtol=0, atol=1e-15)


def test_values_of_the_mdp_are_those_of_the_bellman_equation():
    """Backwards over states, from the transition probabilities; the forms average over whole answers."""
    table_of = worlds.policies(worlds.MDP, "on").now
    policy = table_of.softmax(-1)
    arrive = torch.tensor([[[0.7, 0.3], [0.2, 0.8]], [[0.4, 0.6], [0.9, 0.1]]], dtype=torch.float64)
    act, land = torch.tensor([[0.3, -0.2], [1.0, 0.1]], dtype=torch.float64), torch.tensor([0.0, 0.25]).double()
    last = (policy * act).sum(-1)
    middle = (policy * (act + arrive @ (land + last))).sum(-1)
    first = (policy * (act + arrive @ (land + middle))).sum(-1)
    found = forms.values(worlds.MDP, table_of)
    states = worlds.MDP.rows
    assert torch.allclose(found[:, 0], first[0].expand(len(found)), rtol=0, atol=1e-12)
    assert torch.allclose(found[:, 2], middle[states[:, 2]], rtol=0, atol=1e-12)
    assert torch.allclose(found[:, 4], last[states[:, 4]], rtol=0, atol=1e-12)


def test_the_gradient_of_the_expected_return_follows_from_scores_and_action_values():
    """The policy gradient theorem, on which the closed forms rest."""
    for world in WORLDS:
        now = worlds.policies(world, "on").now
        by_scores = forms.over_tokens(world, now, now, forms.action_values(world, now))
        assert torch.allclose(by_scores, forms.policy_gradient(world, now), rtol=0, atol=1e-14)
