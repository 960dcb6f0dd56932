"""Token log-probabilities against numbers worked out by hand, and padded batches against rows alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import pad_rows, plan_micro_batches, sequence_logprobs, token_logprobs


@pytest.fixture(scope="module")
def model():
    return tiny.model(vocab_size=32, initializer_range=0.3)


def rows(*lengths, seed=0):
    random = np.random.default_rng(seed)
    return [
        (random.integers(0, 32, p).astype(np.int32), random.integers(0, 32, r).astype(np.int32)) for p, r in lengths
    ]


def test_log_probs_and_entropy_are_those_of_three_tokens_worked_out_by_hand():
    # p = (1/2, 1/4, 1/4): H = 1/2 log 2 + 2 · 1/4 log 4 = 3/2 log 2.
    logits = torch.tensor([[math.log(4), math.log(2), math.log(2)]])
    logp, entropy = token_logprobs(logits, torch.tensor([1]))
    assert logp.item() == pytest.approx(-math.log(4))
    assert entropy.item() == pytest.approx(1.5 * math.log(2))


def test_temperature_two_takes_the_square_root_of_the_odds():
    # Odds 4:1 become 2:1.
    logits = torch.tensor([[math.log(4), 0.0]])
    logp, _ = token_logprobs(logits, torch.tensor([0]), 2.0)
    assert logp.item() == pytest.approx(math.log(2 / 3))


def test_each_row_may_have_a_temperature_of_its_own():
    logits = torch.tensor([[[math.log(4), 0.0]], [[math.log(4), 0.0]]])
    logp, _ = token_logprobs(logits, torch.tensor([[0], [0]]), torch.tensor([[1.0], [2.0]]))
    assert logp[:, 0].tolist() == pytest.approx([math.log(4 / 5), math.log(2 / 3)])


def test_the_gradient_of_a_log_prob_is_one_hot_minus_softmax_over_temperature():
    logits = torch.tensor([[math.log(4), math.log(2), math.log(2)]], dtype=torch.float64, requires_grad=True)
    logp, _ = token_logprobs(logits, torch.tensor([0]), 2.0)
    logp.sum().backward()
    p = np.array([2, math.sqrt(2), math.sqrt(2)]) / (2 + 2 * math.sqrt(2))
    assert logits.grad[0].tolist() == pytest.approx(list((np.array([1, 0, 0]) - p) / 2))


def test_the_entropy_of_a_masked_vocabulary_is_finite_forward_and_backward():
    logits = torch.tensor([[1.0, 1.0, -torch.inf]], requires_grad=True)
    logp, entropy = token_logprobs(logits, torch.tensor([0]), entropy_gradient=True)
    (logp + entropy).sum().backward()
    assert logp.item() == pytest.approx(-math.log(2))
    assert entropy.item() == pytest.approx(math.log(2))
    assert logits.grad.tolist()[0] == pytest.approx([0.5, -0.5, 0.0])


def test_the_entropy_carries_a_gradient_only_when_asked():
    logits = torch.randn(2, 5, requires_grad=True)
    assert not token_logprobs(logits, torch.tensor([0, 1]))[1].requires_grad
    assert token_logprobs(logits, torch.tensor([0, 1]), entropy_gradient=True)[1].requires_grad


def test_bfloat16_logits_are_worked_on_in_float32():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(1)).bfloat16()
    logp, entropy = token_logprobs(logits, torch.arange(4), 0.7)
    assert logp.dtype == entropy.dtype == torch.float32
    assert torch.equal(logp, token_logprobs(logits.float(), torch.arange(4), 0.7)[0])


def test_a_padded_batch_agrees_with_every_row_alone(model):
    batch = rows((3, 5), (1, 1), (7, 2), (2, 9), (4, 0))
    together = sequence_logprobs(LogprobModel(model), batch, 0.8, token_budget=10_000)
    for (prompt, response), found in zip(batch, together, strict=True):
        ids = torch.as_tensor(np.concatenate([prompt, response])).long()
        with torch.inference_mode():
            expected = (model(input_ids=ids[None]).logits[0] / 0.8).log_softmax(-1)
        by_hand = [expected[len(prompt) - 1 + t, response[t]].item() for t in range(len(response))]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, by_hand, atol=1e-5)


def test_the_budget_changes_how_rows_are_grouped_and_not_what_they_give(model):
    batch = rows(*[(1 + i % 3, 1 + (5 * i) % 7) for i in range(12)])
    one = sequence_logprobs(LogprobModel(model), batch, token_budget=10_000)
    many = sequence_logprobs(LogprobModel(model), batch, token_budget=12)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_stands_in_the_padding_makes_no_difference(model):
    batch = rows((3, 5), (2, 1))
    for pad in (0, 31):
        padded = pad_rows(batch, pad=pad)
        assert padded.tokens[1, 3:].tolist() == [pad] * 5
        assert padded.responses.sum(1).tolist() == [5, 1]


def test_micro_batches_hold_every_row_once_and_stay_within_the_budget():
    lengths = [3, 9, 1, 4, 4, 8, 2]
    plan = plan_micro_batches(lengths, 12)
    assert sorted(i for batch in plan for i in batch) == list(range(7))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 12 for batch in plan)


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 40))
def test_no_other_way_to_cut_the_rows_costs_less(lengths, budget):
    def cost(plan):
        return sum(len(part) * max(1, *(lengths[i] for i in part)) + budget / 8 for part in plan)

    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    costs = []
    for cut_after in itertools.product((False, True), repeat=max(0, len(order) - 1)):
        edges = [0, *(i + 1 for i, cut in enumerate(cut_after) if cut), len(order)]
        plan = [order[a:b] for a, b in itertools.pairwise(edges) if a < b]
        if all(len(part) == 1 or len(part) * max(1, lengths[part[0]]) <= budget for part in plan):
            costs.append(cost(plan))
    plan = plan_micro_batches(lengths, budget)
    assert [i for part in plan for i in part] == order
    assert cost(plan) == pytest.approx(min(costs))


def test_answers_of_geometric_length_are_little_padding():
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 85, 256), 500).tolist()
    plan = plan_micro_batches(lengths, 8192)
    assert len(plan) <= 8
    assert sum(len(part) * max(lengths[i] for i in part) for part in plan) < 1.25 * sum(lengths)


def test_a_row_longer_than_the_budget_goes_alone():
    assert plan_micro_batches([20, 3], 10) == [[0], [1]]


def test_no_rows_make_one_pass_that_counts_nothing(model):
    padded = pad_rows([])
    assert padded.tokens.shape == (1, 2)
    assert not padded.responses.any()
