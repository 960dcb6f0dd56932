"""Baselines, whitening and credit against plain loops on random inputs."""

from __future__ import annotations

import functools
import math

import maths_loops as loops
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maths_parts import CLOSE, F, row

from penstock.learner.algorithms import advantages, credit

modest = settings(deadline=None, max_examples=20, derandomize=True)
numbers = st.floats(-5, 5, width=32)
members = st.lists(st.tuples(numbers, st.booleans(), st.integers(0, 2)), min_size=1, max_size=8)


def tensors(found):
    rewards, scored, groups = zip(*found, strict=True)
    return torch.tensor(rewards, dtype=F), torch.tensor(scored), torch.tensor(groups)


def mean(values):
    return sum(values) / len(values) if values else 0.0


@modest
@given(members)
def test_baselines_of_a_group_are_their_equations(found):
    rewards, scored, _ = tensors(found)
    counted = [r for r, s, _ in found if s]
    signal = bool(counted) and max(counted) > min(counted)
    centred, apart = [], []
    for i, (reward, is_scored, _) in enumerate(found):
        others = [r for j, (r, s, _) in enumerate(found) if s and j != i]
        centred.append(reward - mean(counted) if is_scored and signal else 0.0)
        apart.append(reward - mean(others) if is_scored and signal else 0.0)
    assert advantages.group_mean(rewards, scored).tolist() == pytest.approx(centred, **CLOSE)
    assert advantages.leave_one_out(rewards, scored).tolist() == pytest.approx(apart, **CLOSE)


@modest
@given(members)
def test_baselines_of_the_batch_are_their_equations(found):
    rewards, scored, groups = tensors(found)
    expected = [
        reward - mean([r for r, s, g in found if s and g != group]) if is_scored else 0.0
        for reward, is_scored, group in found
    ]
    assert advantages.others_mean(rewards, groups, scored).tolist() == pytest.approx(expected, **CLOSE)
    plain = [reward if is_scored else 0.0 for reward, is_scored, _ in found]
    assert advantages.no_baseline(rewards, groups, scored).tolist() == plain


@modest
@given(members)
def test_whitening_is_its_equation(found):
    values, scored, _ = tensors(found)
    values = values.where(scored, 0.0)
    counted = [v for v, s, _ in found if s]
    if len(counted) < 2:
        assert torch.equal(advantages.whiten(values, scored, 0.01), values)
        return
    deviation = math.sqrt(sum((v - mean(counted)) ** 2 for v in counted) / (len(counted) - 1))
    expected = [(v - mean(counted)) / (deviation + 0.01) if s else 0.0 for v, s, _ in found]
    if max(counted) == min(counted):
        expected = [0.0] * len(found)
    assert advantages.whiten(values, scored, 0.01).tolist() == pytest.approx(expected, **CLOSE)


answer = st.lists(st.tuples(numbers, numbers, st.floats(-3, 3), st.booleans()), min_size=1, max_size=20)
unit = st.floats(0.1, 1)


@modest
@given(answer, numbers, unit)
def test_discounted_returns_are_their_equation(tokens, advantage, gamma):
    rewards, _, _, actions = (list(column) for column in zip(*tokens, strict=True))
    found = credit.discounted_return(torch.tensor(rewards, dtype=F), torch.tensor(actions), advantage, gamma)
    assert found.tolist() == pytest.approx(loops.discounted_return(rewards, actions, advantage, gamma), **CLOSE)


@modest
@given(st.lists(st.tuples(numbers, st.booleans()), min_size=1, max_size=8), st.data())
def test_step_rewards_add_up_to_the_last_score_and_the_outcome(tokens, data):
    actions = [is_action for _, is_action in tokens]
    ends = sorted(data.draw(st.sets(st.integers(0, len(tokens) - 1))))
    steps = [(t, tokens[t][0]) for t in ends]
    expected = [0.0] * len(tokens)
    if any(actions):
        expected[max(t for t, is_action in enumerate(actions) if is_action)] += 2.0
        for k, (t, score) in enumerate(steps):
            expected[t] += score - (steps[k - 1][1] if k else 0.0)
    found = credit.token_rewards(2.0, torch.tensor(actions), steps)
    assert found.tolist() == pytest.approx(expected, **CLOSE)
    if any(actions) and steps:
        assert float(found.sum()) == pytest.approx(2.0 + steps[-1][1], **CLOSE)


def both(tokens):
    """An answer beside another of half its length, padded."""
    rewards, values, ratios, mask = (list(column) for column in zip(*tokens, strict=True))
    half = len(tokens) // 2
    short = [column[:half] + [0.0] * (len(tokens) - half) for column in (rewards, values, ratios)]
    return (rewards, values, ratios, mask), (*short, mask[:half] + [False] * (len(tokens) - half))


@modest
@given(answer, numbers, unit, st.floats(0, 1))
def test_gae_is_its_equation(tokens, last, gamma, lam):
    pair = both(tokens)
    rewards, values, ratios, mask = (torch.cat([row(*one), row(*other)]) for one, other in zip(*pair, strict=True))
    found, returns = credit.gae(
        rewards, values, torch.tensor([last, 0.0], dtype=F), ratios, ratios, mask.bool(), gamma, lam
    )
    for i, (each, end) in enumerate(zip(pair, (last, 0.0), strict=True)):
        expected = loops.gae(each[0], each[1], end, each[3], gamma, lam)
        assert found[i].tolist() == pytest.approx(expected[0], **CLOSE)
        assert returns[i].tolist() == pytest.approx(expected[1], **CLOSE)


@modest
@given(answer, numbers, unit, st.floats(0, 1), st.floats(0.3, 3), unit)
def test_vtrace_is_its_equation(tokens, last, gamma, lam, max_rho, share):
    pair = both(tokens)
    rewards, values, logs, mask = (torch.cat([row(*one), row(*other)]) for one, other in zip(*pair, strict=True))
    bounds = {"max_rho": max_rho, "max_c": share * max_rho}
    found, returns = credit.vtrace(
        rewards, values, torch.tensor([last, 0.0], dtype=F), logs, -logs, mask.bool(), gamma, lam, **bounds
    )
    for i, (each, end) in enumerate(zip(pair, (last, 0.0), strict=True)):
        ratios = [math.exp(2 * x) for x in each[2]]
        expected = loops.vtrace(each[0], each[1], end, ratios, each[3], gamma, lam, **bounds)
        assert found[i].tolist() == pytest.approx(expected[0], **CLOSE)
        assert returns[i].tolist() == pytest.approx(expected[1], **CLOSE)


def test_credit_over_a_long_window_is_the_recursion_run_backwards():
    length, gamma, lam = 3000, 0.999, 0.97
    generator = torch.Generator().manual_seed(5)
    rewards, values = torch.randn(2, 1, length, generator=generator, dtype=F)
    mask = torch.rand(1, length, generator=generator) > 0.2
    found, _ = credit.gae(rewards, values, torch.zeros(1, dtype=F), values, values, mask, gamma, lam)
    steps = loops.falling(rewards[0].tolist(), mask[0].tolist())
    expected, advantage, following = [0.0] * length, 0.0, 0.0
    for t, reward in reversed(steps):
        value = values[0, t].item()
        advantage = reward + gamma * following - value + gamma * lam * advantage
        expected[t], following = advantage, value
    assert found[0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_credit_does_not_depend_on_padding():
    one = functools.partial(credit.gae, gamma=0.9, lam=0.8)
    rewards, values, mask = row(1.0, 2.0, 3.0), row(0.5, 0.1, 0.2), torch.tensor([[True, False, True]])
    found, _ = one(rewards, values, torch.tensor([2.0]), values, values, mask)
    wide = [torch.nn.functional.pad(x, (2, 3)) for x in (rewards, values, mask)]
    padded, _ = one(wide[0], wide[1], torch.tensor([2.0]), wide[1], wide[1], wide[2])
    assert torch.equal(padded[:, 2:5], found)
