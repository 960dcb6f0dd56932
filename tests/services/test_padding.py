"""Padding that nobody looks at is not masked; a model that would look at it is told."""

from __future__ import annotations

import pytest
import tiny
import torch

from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import pad_rows, window_outputs
from penstock.services.padding import needs_mask

SIZES = {"vocab_size": 32, "initializer_range": 0.3}
ROWS = [([1, 2, 3], [4, 5, 6, 7]), ([8, 9], [10])]


def masks_given(model: LogprobModel) -> list[object]:
    """What the Hugging Face model is called with."""
    seen: list[object] = []
    base = model.model.base_model
    handle = base.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    window_outputs(model, pad_rows(ROWS))
    handle.remove()
    return seen


@pytest.mark.parametrize("family", ["Qwen3", "Qwen3Moe", "Llama", "Gemma2", "Cohere", "Mistral", "GPTNeoX"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_causal_model_gets_no_mask(family, dtype):
    model = LogprobModel(tiny.model(0, family, **SIZES).to(dtype))
    assert masks_given(model) == [None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_looks_to_the_right_gets_one(dtype):
    model = tiny.model(0, **SIZES).to(dtype)
    with torch.no_grad():
        model.model.norm.weight[3] = 100.0  # as real models have outliers
    assert not needs_mask(model.base_model)
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    assert needs_mask(model.base_model)
    (mask,) = masks_given(LogprobModel(model))
    assert mask.tolist() == [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]]


def test_a_model_that_fails_without_gets_one():
    model = tiny.model(0, **SIZES)
    forward = model.model.forward
    model.model.forward = lambda *, attention_mask, **given: forward(attention_mask=attention_mask + 0, **given)
    assert needs_mask(model.base_model)


def test_trying_it_leaves_dropout_as_it_was():
    model = tiny.model(0, **SIZES).train()
    model.model.layers[0].eval()
    needs_mask(model.base_model)
    assert model.training and model.model.layers[1].training and not model.model.layers[0].training
