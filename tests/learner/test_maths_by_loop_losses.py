"""Objectives, corrections, rejections, penalties and their composition against plain loops on random inputs."""

from __future__ import annotations

import functools
import itertools
import math
from types import SimpleNamespace

import maths_loops as loops
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maths_parts import (
    CLOSE,
    OBJECTIVES,
    PENALTIES,
    REJECTIONS,
    TRUSTS,
    F,
    answers,
    column,
    columns,
    everywhere,
    row,
)

from penstock.learner.algorithms import kl, rejections, values
from penstock.learner.algorithms.composition import compose

modest = settings(deadline=None, max_examples=15, derandomize=True)
few = settings(deadline=None, max_examples=4, derandomize=True)


def loop_of(function):
    """The loop that stands for a function of `maths_parts`, with the same coefficients."""
    partial = function if isinstance(function, functools.partial) else functools.partial(function)
    return functools.partial(getattr(loops, partial.func.__name__), **partial.keywords)


def flat(nested):
    return [x for inner in nested for x in inner]


@pytest.mark.parametrize("name", OBJECTIVES)
@modest
@given(answers(), st.data())
def test_objectives_are_their_equations_in_value_and_gradient(name, found, data):
    logp = column(found, "logp").requires_grad_()
    losses, _ = OBJECTIVES[name](logp, *columns(found))
    size = {"min_size": logp.shape[1], "max_size": logp.shape[1]}
    cotangents = [data.draw(st.lists(st.floats(-2, 2), **size)) for _ in found]
    slopes = torch.autograd.grad((losses * torch.tensor(cotangents, dtype=F)).sum(), logp)[0]
    for i, answer in enumerate(found):
        expected, pull = loop_of(OBJECTIVES[name])(answer)
        assert losses[i].tolist() == pytest.approx(expected, **CLOSE)
        assert slopes[i].tolist() == pytest.approx(pull(cotangents[i]), **CLOSE)


@modest
@given(answers(most=1))
def test_the_sum_of_mirror_descents_pieces_is_the_answers_loss(found):
    (answer,) = found
    used = [token for token in answer if token.counts]
    losses, _ = OBJECTIVES["mirror_descent"](column(found, "logp"), *columns(found))
    moved = sum(token.logp for token in used) - sum(token.prox for token in used)
    expected = 0.1 / 2 * moved**2 - sum(token.advantage * token.logp for token in used)
    assert losses.sum().item() == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("name", TRUSTS)
@modest
@given(answers())
def test_trust_regions_are_their_equations(name, found):
    trust, _ = TRUSTS[name](*columns(found))
    for i, answer in enumerate(found):
        weights, keep = loop_of(TRUSTS[name])(answer)
        assert trust.weights[i].tolist() == pytest.approx(weights, **CLOSE)
        assert trust.keep[i].tolist() == keep


@pytest.mark.parametrize("name", REJECTIONS)
@modest
@given(answers())
def test_rejections_are_their_equations(name, found):
    keep, _ = REJECTIONS[name](*columns(found))
    assert keep.tolist() == [loop_of(REJECTIONS[name])(answer) for answer in found]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.floats(-3, 3), max_size=7, unique_by=abs), st.floats(0.001, 5))
def test_no_smaller_set_of_tokens_brings_the_second_moment_under_its_bound(ratios, most):
    bound = rejections.second_moment_bound(torch.tensor(ratios, dtype=F), most)
    kept = [x for x in ratios if x * x <= bound]
    assert not kept or sum(x * x for x in kept) / len(kept) <= most * (1 + 1e-9)
    for others in itertools.combinations(ratios, min(len(kept) + 1, len(ratios))):
        if len(others) > len(kept):
            assert sum(x * x for x in others) / len(others) > most * (1 - 1e-9)


logs = st.floats(-6, 0)


@pytest.mark.parametrize("name", PENALTIES)
@modest
@given(logs, logs, logs)
def test_penalties_are_their_equations(name, own, reference, sampler):
    logp = row(own).requires_grad_()
    found = PENALTIES[name](logp, row(reference), row(sampler))
    value, slope = getattr(loops, name)(own, reference, sampler)
    assert found.item() == pytest.approx(value, **CLOSE)
    assert torch.autograd.grad(found.sum(), logp)[0].item() == pytest.approx(slope, **CLOSE)


@modest
@given(logs, logs)
def test_estimators_are_their_equations(own, reference):
    expected = {"k1": own - reference, "k2": loops.k2(own, reference, 0)[0], "k3": loops.k3(own, reference, 0)[0]}
    found = {name: f(row(own), row(reference)).item() for name, f in kl.ESTIMATORS.items()}
    assert found == pytest.approx(expected, **CLOSE)


@modest
@given(st.lists(st.tuples(*[st.floats(-4, 4)] * 3, st.booleans()), min_size=1, max_size=6), st.floats(0.1, 2))
def test_the_value_loss_is_its_equation(tokens, clip):
    new, old, goal, mask = (row(*column) for column in zip(*tokens, strict=True))
    new.requires_grad_()
    losses, _ = values.value_loss(new, old, goal, mask.bool(), clip)
    slopes = torch.autograd.grad(losses.sum(), new)[0]
    for t, (v, o, g, counts) in enumerate(tokens):
        held = o + loops.clip(v - o, -clip, clip)
        value, slope = max((v - g) ** 2, (held - g) ** 2) / 2, 0.0 if (held - g) ** 2 > (v - g) ** 2 else v - g
        assert losses[0, t].item() == pytest.approx(value if counts else 0.0, **CLOSE)
        if abs((v - g) ** 2 - (held - g) ** 2) > 1e-9 or abs(v - o) < clip * (1 - 1e-9):
            assert slopes[0, t].item() == pytest.approx(slope if counts else 0.0, **CLOSE)


@modest
@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=12))
def test_explained_variance_is_its_equation(pairs):
    goals, errors = [g for _, g in pairs], [g - v for v, g in pairs]

    def variance(numbers):
        mean = sum(numbers) / len(numbers)
        return sum((x - mean) ** 2 for x in numbers) / len(numbers)

    value, goal = row(*[v for v, _ in pairs]), row(*goals)
    found = values.explained_variance(*values.error_sums(value, goal, everywhere(goal)).tolist())
    if variance(goals) > 1e-3:  # below, the sums of doubles do not hold nine digits of it
        assert found == pytest.approx(1 - variance(errors) / variance(goals), rel=1e-9, abs=1e-9)


# --- all of it put together -------------------------------------------------------------------------


def algorithm(objective, trust, reject, penalty):
    return SimpleNamespace(
        objective=OBJECTIVES[objective],
        trust=TRUSTS[trust],
        reject=lambda *args: REJECTIONS[reject](*args[:4]),
        penalty=PENALTIES.get(penalty),
        kl_coefficient=0.3,
        entropy_coefficient=0.01,
    )


def whole_loss(cells, answer, references, entropies, weight):
    """(loss, slopes) of one answer, from the loops."""
    objective, trust, reject, penalty = cells
    weights, keep = loop_of(TRUSTS[trust])(answer)
    keep = [a and b for a, b in zip(keep, loop_of(REJECTIONS[reject])(answer), strict=True)]
    losses, pull = loop_of(OBJECTIVES[objective])(answer)
    cotangents = [weight * w * k for w, k in zip(weights, keep, strict=True)]
    total = sum(c * loss for c, loss in zip(cotangents, losses, strict=True))
    slopes = pull(cotangents)
    for t, token in enumerate(answer):
        if not token.counts:
            continue
        total -= weight * 0.01 * entropies[t]
        if penalty != "none":
            value, slope = getattr(loops, penalty)(token.logp, references[t], token.sampler)
            total += weight * 0.3 * value
            slopes[t] += weight * 0.3 * slope
    return total, slopes


@pytest.mark.parametrize("penalty", ["none", *PENALTIES])
@pytest.mark.parametrize("objective", OBJECTIVES)
@few
@given(answers(most=2, longest=4), st.sampled_from(list(TRUSTS)), st.sampled_from(list(REJECTIONS)), st.data())
def test_the_whole_loss_is_put_together_as_in_the_papers(objective, penalty, found, trust, reject, data):
    cells = (objective, trust, reject, penalty)
    size = {"min_size": len(found[0]), "max_size": len(found[0])}
    references = [data.draw(st.lists(logs, **size)) for _ in found]
    entropies = [data.draw(st.lists(st.floats(0, 5), **size)) for _ in found]
    weights = [data.draw(st.floats(0.01, 1)) for _ in found]
    logp = column(found, "logp").requires_grad_()
    prox, sampler, advantages, mask = columns(found)
    made = compose(
        algorithm(*cells),
        logp,
        prox,
        sampler,
        torch.tensor(references, dtype=F),
        advantages,
        mask,
        torch.tensor(weights, dtype=F),
        torch.tensor(entropies, dtype=F),
        math.inf,
    )
    expected = [
        whole_loss(cells, answer, *rest) for answer, *rest in zip(found, references, entropies, weights, strict=True)
    ]
    assert made.loss.item() == pytest.approx(sum(total for total, _ in expected), **CLOSE)
    slopes = torch.autograd.grad(made.loss, logp)[0]
    assert flat(slopes.tolist()) == pytest.approx(flat(each for _, each in expected), **CLOSE)
