"""Models that answer with log-probabilities, against their own logits: families, padding, filters, values."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.services.logprob_head import Finish, KeptTokens
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import pad_rows, sequence_logprobs, token_logprobs, window_logprobs, window_outputs
from penstock.services.trajectory import Kept

VOCABULARY = 32
SIZES = {"vocab_size": VOCABULARY, "initializer_range": 0.3}
FAMILIES = {
    "Qwen3": ({"tie_word_embeddings": False}, Finish()),
    "Qwen3Moe": ({"tie_word_embeddings": False, "experts_implementation": "eager"}, Finish()),
    "Llama": ({}, Finish()),
    "Gemma2": ({"final_logit_softcapping": 20.0}, Finish(1.0, 20.0)),
    "Cohere": ({"logit_scale": 0.25}, Finish(0.25)),
    "Granite": ({"tie_word_embeddings": False, "logits_scaling": 8.0}, Finish(1 / 8)),
    "HyperCLOVAX": ({"tie_word_embeddings": False, "logits_scaling": 4.0}, Finish(4.0)),
}


def build(family="Qwen3", dtype=torch.float64, seed=0, **changes):
    return tiny.model(seed, family, **SIZES | FAMILIES[family][0] | changes).to(dtype)


QWEN = build()


def rows_of(*lengths, seed=0):
    random = np.random.default_rng(seed)
    return [tuple(random.integers(0, VOCABULARY, n).astype(np.int32) for n in pair) for pair in lengths]


def plain(model, rows, temperature):
    """Log-probs of the response tokens, row by row and alone, from the model's own logits."""
    found = []
    for prompt, response in rows:
        ids = torch.as_tensor(np.concatenate([prompt, response])).long()
        table = (model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        found.append(table.gather(-1, ids[len(prompt) :, None])[:, 0])
    return torch.cat(found)


def plain_padded(model, padded, temperatures):
    """Log-probs and entropies of the response tokens from the model's own logits of the same padded rows."""
    logits = model(input_ids=padded.tokens, attention_mask=padded.attention.long()).logits
    logits = logits[:, -padded.targets.shape[1] - 1 : -1][padded.responses]
    temperatures = (
        torch.tensor(temperatures, dtype=torch.float64).unsqueeze(-1).expand(padded.responses.shape)[padded.responses]
    )
    return token_logprobs(logits, padded.targets[padded.responses], temperatures, entropy_gradient=True)


def close(found, expected, tolerance=1e-9):
    return torch.allclose(found, expected, rtol=0.0, atol=tolerance)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_the_models_own_logits(family):
    exact = family != "Qwen3Moe"  # experts know no float64
    model = build(family, torch.float64 if exact else torch.float32)
    tolerance = 1e-9 if exact else 1e-5
    batch, temperatures = rows_of((3, 5), (1, 1), (7, 2), (2, 9)), (0.7, 1.0, 1.3, 1.0)
    padded = pad_rows(batch)
    logp, entropy = plain_padded(model, padded, temperatures)
    pulls = torch.randn(2, len(logp), dtype=logp.dtype, generator=torch.Generator().manual_seed(0))
    expected = gradients(model, (pulls[0] * logp + pulls[1] * entropy).sum())
    chunked = LogprobModel(model, chunk_tokens=4)
    assert chunked.chunked
    assert chunked._finish == FAMILIES[family][1]
    found = window_outputs(
        chunked, padded, torch.tensor(temperatures, dtype=torch.float64).unsqueeze(-1), entropy_gradient=True
    )
    assert close(found.logp[padded.responses], logp, tolerance)
    assert close(found.entropy[padded.responses], entropy, tolerance)
    assert found.values is None
    assert not found.logp[~padded.responses].any()
    pulled = pulls[0] * found.logp[padded.responses] + pulls[1] * found.entropy[padded.responses]
    assert_same(gradients(model, pulled.sum()), expected, tolerance)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2", "Granite"])
def test_the_finish_is_found_in_bfloat16_too(family):
    assert LogprobModel(build(family, torch.bfloat16))._finish == FAMILIES[family][1]


def test_small_logits_do_not_hide_a_cap():
    """An untrained model's logits are near 0, where a cap at 30 changes nothing yet."""
    model = build("Gemma2", torch.float32)
    model.lm_head.weight.data *= 1e-3
    assert LogprobModel(model)._finish == Finish(1.0, 20.0)


class Doubling(transformers.Qwen3ForCausalLM):
    """Does what no configuration has a word for."""

    def forward(self, *arguments, **named):
        output = super().forward(*arguments, **named)
        output.logits = 2 * output.logits
        return output


def test_a_model_with_an_unknown_end_keeps_its_logits_and_says_so(caplog):
    model = Doubling(tiny.config(**SIZES)).double().eval()
    layer = model.lm_head
    wrapped = LogprobModel(model)
    assert "Doubling does something unknown after its output layer" in caplog.text
    assert not wrapped.chunked
    assert model.lm_head is layer
    batch = rows_of((3, 5), (1, 2))
    padded = pad_rows(batch)
    found, entropy = window_logprobs(wrapped, padded, 0.8, entropy_gradient=True)
    logp, expected = plain_padded(model, padded, (0.8, 0.8))
    assert close(found[padded.responses], logp)
    assert close(entropy[padded.responses], expected)
    with pytest.raises(ValueError, match="value head cannot be put on Doubling"):
        LogprobModel(model, value_head=True)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=5),
    chunk=st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_any_rows_and_any_chunk_give_what_the_rows_alone_give(lengths, chunk, seed):
    batch = rows_of(*lengths, seed=seed)
    padded = pad_rows(batch)
    found, _ = window_logprobs(LogprobModel(QWEN, chunk_tokens=chunk), padded, 0.9)
    if padded.responses.any():
        filled = [row for row in batch if len(row[1])]
        # Inside of the model some things are computed in float32 whatever its weights are.
        assert close(found[padded.responses], plain(QWEN, filled, 0.9), 1e-5)
        assert close(found[padded.responses], plain_padded(QWEN, padded, [0.9] * len(batch))[0])
    assert not found[~padded.responses].any()


@pytest.mark.parametrize("rows", [[], rows_of((3, 0), (1, 0))])
def test_a_pass_without_responses_calls_every_module_and_gives_zero_gradients(rows):
    model = LogprobModel(build(), value_head=True)
    called = []
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: called.append(module))
    padded = pad_rows(rows)
    found = window_outputs(model, padded, 0.8, entropy_gradient=True)
    assert {model.model.lm_head, model.value_head, *model.model.model.layers} <= set(called)
    assert not found.logp.any()
    assert not found.entropy.any()
    for gradient in gradients(model, (found.logp + found.entropy).sum() + 0 * found.values.sum()).values():
        assert not gradient.any()


def test_only_responses_go_through_the_output_layer():
    model = LogprobModel(build())
    seen = []
    model.model.lm_head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape))
    window_logprobs(model, pad_rows(rows_of((30, 2), (4, 9), (5, 0))))
    assert seen == [(11, 32)]


def test_kept_tokens_belong_to_their_rows_however_rows_are_batched():
    model = LogprobModel(build(), chunk_tokens=3)
    batch = rows_of((3, 4), (1, 1), (2, 3))
    random = np.random.default_rng(1)
    kept = []
    for _, response in batch:
        sets = [sorted({int(t), *random.integers(0, VOCABULARY, 3).tolist()}) for t in response]
        sets[0] = []  # not known
        kept.append(
            Kept(counts=np.array([len(s) for s in sets], np.int32), tokens=np.concatenate(sets).astype(np.int32))
        )
    kept[1] = None
    expected = []
    for (prompt, response), filters in zip(batch, kept, strict=True):
        ids = torch.as_tensor(np.concatenate([prompt, response])).long()
        with torch.no_grad():
            logits = model.model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1] / 0.7
        ends = np.cumsum([0, *(filters.counts if filters else [0] * len(response))])
        for t, token in enumerate(response):
            left = filters.tokens[ends[t] : ends[t + 1]].tolist() if ends[t] < ends[t + 1] else range(VOCABULARY)
            removed = [i for i in range(VOCABULARY) if i not in left]
            logits[t, removed] = -torch.inf
            expected.append(logits[t].log_softmax(-1)[int(token)].item())
    for budget in (100, 6, 1):
        found = sequence_logprobs(model, batch, 0.7, budget, kept=kept)
        assert np.concatenate(found).tolist() == pytest.approx(expected, abs=1e-6)


def test_kept_tokens_and_the_whole_vocabulary_agree_where_all_were_kept():
    model, batch = LogprobModel(QWEN), rows_of((3, 4), (1, 2))
    padded = pad_rows(batch)
    everything = KeptTokens(torch.full((6,), VOCABULARY), torch.arange(VOCABULARY).repeat(6))
    for one, other in zip(
        window_logprobs(model, padded, 0.7), window_logprobs(model, padded, 0.7, kept=everything), strict=True
    ):
        assert torch.equal(one, other)


def test_values_stand_before_every_token_and_behind_the_last_one():
    model = LogprobModel(build(), value_head=True)
    batch = rows_of((3, 5), (1, 2))
    padded = pad_rows(batch)
    first = window_outputs(model, padded).values
    assert first.shape == (2, padded.targets.shape[1] + 1)
    assert not first.any()
    model.value_head.weight.data = torch.arange(32.0, dtype=torch.float64)[None] / 32
    model.value_head.bias.data.fill_(0.5)
    values = window_outputs(model, padded).values
    for row, (prompt, response) in zip(values, batch, strict=True):
        ids = torch.as_tensor(np.concatenate([prompt, response])).long()
        states = model.model.model(input_ids=ids[None]).last_hidden_state[0]
        # The window begins at the end of the shortest prompt, which has one token.
        assert close(row[: len(ids)], states @ model.value_head.weight[0] + 0.5, 1e-5)
        assert not row[len(ids) :].any()


def test_activations_computed_again_in_backward_change_nothing():
    model, padded = LogprobModel(build(), chunk_tokens=2), pad_rows(rows_of((3, 5), (1, 2)))
    expected = gradients(model, window_logprobs(model, padded)[0].sum())
    model.model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert_same(gradients(model, window_logprobs(model, padded)[0].sum()), expected, 1e-9)


def test_bfloat16_weights_give_float32_log_probs_at_the_exact_temperature():
    model, padded = LogprobModel(build(dtype=torch.bfloat16)), pad_rows(rows_of((3, 5)))
    temperature = 0.7003  # bfloat16 would make 0.69921875 of it
    logp, entropy = window_logprobs(model, padded, torch.tensor([[temperature]]))
    assert logp.dtype == entropy.dtype == torch.float32
    assert close(logp[padded.responses], plain_padded(model.model, padded, [temperature])[0], 1e-5)


def test_the_model_is_the_same_for_everybody_else():
    model = build()
    ids = torch.arange(6)[None]
    before, names = model(input_ids=ids).logits, list(model.state_dict())
    model.train()
    wrapped = LogprobModel(model, value_head=True)
    assert model.training
    assert torch.equal(model(input_ids=ids).logits, before)
    assert list(model.state_dict()) == names
    assert set(dict(wrapped.named_parameters())) == {
        *(f"model.{name}" for name, _ in model.named_parameters()),
        "value_head.weight",
        "value_head.bias",
    }
