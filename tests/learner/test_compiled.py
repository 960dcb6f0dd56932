"""Compiled layers compute what the others compute, for micro-batches of any shape, without compiling again. Kept apart,
because compiling takes a minute."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from learner_parts import tiny_model

from penstock.learner.compiled import compile_layers
from penstock.learner.config import LearnerSection
from penstock.learner.critic import ValueModel, window_values
from penstock.learner.routing import replay
from penstock.services.contracts import PenstockError
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import pad_rows, window_logprobs

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]
BUDGET = 4096
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Of log-probs, and of weights after nine updates at a rate of 1e-3."""
CASES = {
    "plain": {},
    "again": {"gradient_checkpointing": True, "zero_stage": 1},
    "bfloat16": {"dtype": "bfloat16", "zero_stage": 2},
}


def rows_of(count: int, length: int, seed: int = 0):
    random = np.random.default_rng(seed)
    pairs = [(2, max(1, length - 2 - i % 3)) for i in range(count)]
    return pad_rows([tuple(random.integers(0, 12, n).astype(np.int32) for n in pair) for pair in pairs])


def trained(section: LearnerSection, shapes: list[tuple[int, int]]):
    """(log-probs of every shape, the weights after one update for each, compilations since the first)."""
    from torch._dynamo.utils import counters

    from penstock.learner.engine import Engine

    before = counters["stats"]["unique_graphs"]
    engine = Engine(tiny_model(), section, 1)
    made, said = counters["stats"]["unique_graphs"], []
    assert (made > before) == section.compile
    for number, shape in enumerate(shapes):
        rows = rows_of(*shape, seed=number)
        with torch.no_grad():
            bare, _ = window_logprobs(engine, rows)
        logp, _ = window_logprobs(engine, rows)
        assert torch.allclose(bare, logp, rtol=0, atol=TOLERANCE[section.dtype])
        said.append(logp.detach())
        engine.backward(-logp.sum() / logp.numel(), True)
        assert engine.step(1e-3).applied
    return said, engine.snapshot(True), counters["stats"]["unique_graphs"] - made


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_a_compiled_engine_learns_what_another_learns(team, changes):
    shapes = [
        (1, 9),
        (3, 7),
        (16, 32),
        (64, 8),
        (1, 100),
        (2, 128),
        (100, 5),
        (120, 11),
        (100, 30),
        (32, 120),
        (1, 128),
    ]
    section = LearnerSection(micro_batch_tokens=BUDGET, **changes)
    plain, expected, _ = trained(section, shapes)
    compiled, found, again = trained(section.model_copy(update={"compile": True}), shapes)
    assert again == 0, "what came was compiled at the start"
    assert max(float((a - b).abs().max()) for a, b in zip(compiled, plain, strict=True)) < TOLERANCE[section.dtype]
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < TOLERANCE[section.dtype]


def test_a_compiled_value_model_gives_the_values_of_another(team):
    rows = rows_of(3, 9)
    models = [ValueModel(tiny_model().base_model).train() for _ in range(2)]
    for model in models:
        torch.nn.init.ones_(model.value_head.weight)
    assert compile_layers(models[0], BUDGET) == 2
    compiled, plain = (window_values(model, rows) for model in models)
    assert torch.allclose(compiled, plain, rtol=0, atol=1e-4) and float(plain.detach().abs().max()) > 0.1


def test_routing_is_not_replayed_in_compiled_layers(team):
    model = LogprobModel(tiny.model(0, "Qwen3Moe", vocab_size=32))
    for layer in model.model.model.layers:
        layer.compile()
    with pytest.raises(PenstockError, match=r"set learner\.compile=false"), replay(model, torch.zeros(2, 3, 2)):
        pass


def test_a_model_that_does_not_say_what_it_repeats_is_refused(team):
    model = LogprobModel(tiny_model())
    model.model.base_model._no_split_modules = None
    with pytest.raises(PenstockError, match=r"set learner\.compile to false"):
        compile_layers(model, BUDGET)


def test_without_a_compiler_it_is_said_before_anything_is_trained(team, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    with pytest.raises(PenstockError, match=r"g\+\+.*set learner.compile to false"):
        compile_layers(LogprobModel(tiny.model(0, vocab_size=32)), BUDGET)
