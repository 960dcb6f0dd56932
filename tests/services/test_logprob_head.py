"""The chunked output layer against plain torch over the whole vocabulary at once: values, gradients, kept tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from penstock.services.logprob_head import AS_IS, Finish, KeptTokens, LogprobHead, Readout
from penstock.services.logprobs import token_logprobs

SHAPES = {
    "tokens": st.integers(1, 9),
    "vocabulary": st.integers(2, 12),
    "chunk": st.integers(1, 10),
    "seed": st.integers(0, 99),
    "bias": st.booleans(),
    "filtered": st.booleans(),
    "finish": st.sampled_from([AS_IS, Finish(0.3), Finish(1.0, 2.0), Finish(2.5, 3.0)]),
}


class Case:
    """Random states and weights, and what is asked about them."""

    def __init__(self, tokens, vocabulary, seed, bias=False, filtered=False, dtype=torch.float64, width=5):
        random = torch.Generator().manual_seed(seed)
        self.layer = nn.Linear(width, vocabulary, bias=bias, dtype=dtype)
        for parameter in self.layer.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random, dtype=dtype)
        self.hidden = torch.randn(tokens, width, generator=random, dtype=dtype, requires_grad=True)
        self.targets = torch.randint(vocabulary, (tokens,), generator=random)
        self.temperatures = 0.5 + torch.rand(tokens, generator=random, dtype=torch.float64)
        self.pulls = torch.randn(2, tokens, generator=random, dtype=torch.float64)
        self.kept = kept_with(self.targets, vocabulary, random) if filtered else None

    def chunked(self, chunk, entropy_gradient=True, finish=AS_IS):
        return LogprobHead(self.layer)(
            self.hidden, self.targets, self.temperatures, entropy_gradient, self.kept, finish, chunk
        )

    def plain(self, finish=AS_IS):
        """Token by token, as the equations read; what was not kept is at −inf by a loop."""
        z = self.layer(self.hidden) * finish.scale
        if finish.cap is not None:
            z = finish.cap * torch.tanh(z / finish.cap)
        found = []
        for t, row in enumerate(z / self.temperatures.unsqueeze(-1)):
            kept = list(range(len(row))) if self.kept is None else kept_of(self.kept, t) or list(range(len(row)))
            logs = row[kept] - torch.logsumexp(row[kept], 0)
            entropy = -(logs.exp() * logs).sum()
            target = int(self.targets[t])
            found.append((logs[kept.index(target)], entropy))
        logp, entropy = zip(*found, strict=True)
        return torch.stack(logp), torch.stack(entropy)

    def gradients(self, logp, entropy):
        """Of all that has one, for random weights of both results."""
        leaves = [self.hidden, *self.layer.parameters()]
        return torch.autograd.grad((self.pulls[0] * logp + self.pulls[1] * entropy).sum(), leaves)


def kept_with(targets, vocabulary, random):
    """Between none (not known) and all of the vocabulary, the target always among them."""
    counts, ids = [], []
    for target in targets.tolist():
        others = [i for i in range(vocabulary) if i != target and torch.rand((), generator=random) < 0.4]
        chosen = sorted([target, *others]) if torch.rand((), generator=random) < 0.8 else []
        counts.append(len(chosen))
        ids += chosen
    return KeptTokens(torch.tensor(counts), torch.tensor(ids, dtype=torch.long))


def kept_of(kept, token):
    first = int(kept.counts[:token].sum())
    return kept.tokens[first : first + int(kept.counts[token])].tolist()


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        one, other = one.detach(), other.detach()
        assert float((one - other).abs().max()) <= tolerance * max(1.0, float(other.abs().max()))


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_values_and_gradients_are_those_of_the_equations(tokens, vocabulary, chunk, seed, bias, filtered, finish):
    case = Case(tokens, vocabulary, seed, bias, filtered)
    found, expected = case.chunked(chunk, finish=finish), case.plain(finish)
    assert_close(found, expected, 1e-9)
    assert_close(case.gradients(*found), case.gradients(*expected), 1e-9)


@settings(max_examples=30, deadline=None)
@given(**SHAPES)
def test_float32_agrees_to_five_digits(tokens, vocabulary, chunk, seed, bias, filtered, finish):
    case = Case(tokens, vocabulary, seed, bias, filtered, torch.float32)
    found, expected = case.chunked(chunk, finish=finish), case.plain(finish)
    assert found[0].dtype == found[1].dtype == torch.float32
    assert_close(found, expected, 1e-5)
    assert_close(case.gradients(*found), case.gradients(*expected), 1e-5)


def test_two_logits_worked_out_by_hand():
    # z = (log 4, 0): p = (4/5, 1/5); d log p(0) / dz = (1/5, −1/5); H = log 5 − 4/5 log 4.
    layer = nn.Linear(1, 2, bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor([[math.log(4)], [0.0]], dtype=torch.float64)
    hidden = torch.ones(1, 1, dtype=torch.float64)
    logp, entropy = LogprobHead(layer)(hidden, torch.tensor([0]), torch.ones(1))
    logp.sum().backward()
    assert logp.item() == pytest.approx(math.log(4 / 5))
    assert entropy.item() == pytest.approx(math.log(5) - 0.8 * math.log(4))
    assert layer.weight.grad.flatten().tolist() == pytest.approx([0.2, -0.2])


@pytest.mark.parametrize("pull", [0.0, 3.0])
def test_one_kept_token_was_certain_and_teaches_nothing(pull):
    case = Case(3, 6, 0)
    case.kept = KeptTokens(torch.ones(3, dtype=torch.long), case.targets)
    logp, entropy = case.chunked(2)
    assert logp.tolist() == entropy.tolist() == [0.0, 0.0, 0.0]
    case.pulls[1] = pull
    for gradient in case.gradients(logp, entropy):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_target_that_was_not_kept_is_impossible_and_its_gradient_finite():
    case = Case(2, 4, 0)
    case.targets = torch.tensor([0, 1])
    case.kept = KeptTokens(torch.tensor([2, 2]), torch.tensor([1, 3, 1, 2]))
    logp, entropy = case.chunked(1)
    assert logp[0] == -torch.inf
    assert torch.isfinite(logp[1])
    assert all(bool(torch.isfinite(g).all()) for g in case.gradients(logp, entropy))


def test_logits_of_minus_infinity_are_outside_of_the_distribution():
    case = Case(4, 5, 1, bias=True)
    case.layer.bias.data[2] = -torch.inf
    case.targets = torch.tensor([0, 1, 3, 4])
    found = case.chunked(3)
    case.kept = KeptTokens(torch.full((4,), 4), torch.tensor([0, 1, 3, 4] * 4))
    assert_close(found, case.plain(), 1e-9)
    hidden_gradient, *_ = case.gradients(*found)
    assert_close([hidden_gradient], [case.gradients(*case.plain())[0]], 1e-9)


def test_the_entropy_carries_a_gradient_only_when_asked():
    case = Case(3, 7, 2)
    logp, entropy = case.chunked(2, entropy_gradient=False)
    assert logp.requires_grad
    assert not entropy.requires_grad
    assert_close([entropy], [case.plain()[1]], 1e-9)
    expected = torch.autograd.grad((case.pulls[0] * case.plain()[0]).sum(), [case.hidden, case.layer.weight])
    assert_close(torch.autograd.grad((case.pulls[0] * logp).sum(), [case.hidden, case.layer.weight]), expected, 1e-9)


def test_a_frozen_weight_and_a_frozen_trunk_get_no_gradient():
    case = Case(3, 7, 3)
    case.layer.weight.requires_grad_(False)
    logp, _ = case.chunked(2)
    expected = torch.autograd.grad(case.plain()[0].sum(), case.hidden)
    assert_close(torch.autograd.grad(logp.sum(), case.hidden), expected, 1e-9)
    case = Case(3, 7, 3)
    case.hidden = case.hidden.detach()
    expected = torch.autograd.grad(case.plain()[0].sum(), case.layer.weight)
    assert_close(torch.autograd.grad(case.chunked(2)[0].sum(), case.layer.weight), expected, 1e-9)


def test_a_gradient_that_is_not_a_number_stays_one():
    case = Case(3, 7, 4)
    logp, _ = case.chunked(2)
    (logp * torch.tensor([1.0, torch.nan, 1.0])).sum().backward()
    assert case.layer.weight.grad.isnan().any()
    assert not case.hidden.grad[0].isnan().any()


def test_logits_of_plus_and_minus_ten_thousand_give_finite_results():
    case = Case(2, 3, 0)
    case.layer.weight.data *= 1e4
    logp, entropy = case.chunked(1)
    for found in (logp, entropy, *case.gradients(logp, entropy)):
        assert bool(torch.isfinite(found).all())
    assert_close((logp, entropy), case.plain(), 1e-9)


def test_bfloat16_weights_are_added_up_in_float32():
    """Eight hundred chunks of one token: in bfloat16 the sum would stop growing at 256 times a term."""
    layer = nn.Linear(1, 2, bias=False, dtype=torch.bfloat16)
    layer.weight.data.zero_()
    hidden = torch.ones(800, 1, dtype=torch.bfloat16)
    head = LogprobHead(layer)
    logp, entropy = head(hidden, torch.zeros(800, dtype=torch.long), torch.ones(800), chunk=1)
    logp.sum().backward()
    assert logp.dtype == entropy.dtype == torch.float32
    # d log p(0) / dz = (1/2, −1/2) for every token.
    assert layer.weight.grad.flatten().tolist() == [400.0, -400.0]


def test_bfloat16_differs_from_the_plain_computation_by_no_more_than_its_rounding():
    case = Case(40, 50, 5, dtype=torch.bfloat16, width=16)
    logits = case.layer(case.hidden)
    expected = token_logprobs(logits, case.targets, case.temperatures.float(), True)
    found = case.chunked(7)
    assert found[0].dtype == torch.float32
    assert_close(found, expected, 1e-2)
    pulled = [(case.pulls[0] * a + case.pulls[1] * b).sum() for a, b in (found, expected)]
    gradients = [torch.autograd.grad(p, [case.hidden, case.layer.weight]) for p in pulled]
    assert_close(gradients[0], [g.float() for g in gradients[1]], 2e-2)


def test_hidden_states_alone_give_logits_as_before():
    case = Case(3, 7, 6, bias=True)
    head = LogprobHead(case.layer)
    assert torch.equal(head(case.hidden), case.layer(case.hidden))
    assert head.weight is case.layer.weight
    assert head.bias is case.layer.bias


def test_no_more_logits_exist_at_a_time_than_a_chunk_holds():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    case = Case(64, 1000, 0, filtered=True, dtype=torch.float32, width=2)
    with Watch():
        logp, entropy = case.chunked(4)
        (logp + entropy).sum().backward()
    assert largest == 4 * 1000


def test_a_readout_starts_at_zero_and_multiplies_in_float32():
    readout = Readout(3, 1).bfloat16()
    hidden = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.bfloat16)
    assert readout(hidden).tolist() == [[0.0]]
    readout.weight.data = torch.tensor([[1.0, 2**-8, 0.0]], dtype=torch.bfloat16)
    # bfloat16 has no number between 1 + 1/128 and 1 + 2/128.
    assert readout(torch.tensor([[1.0, 3.0, 0.0]], dtype=torch.bfloat16)).item() == 1 + 3 / 256
    assert readout(hidden.double()).dtype == torch.float64
