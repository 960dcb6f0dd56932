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
from penstock.services.contracts import PenstockError
from penstock.services.logprobs import pad_rows, window_logprobs

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]
BUDGET = 4096


def rows_of(count: int, length: int, seed: int = 0):
    random = np.random.default_rng(seed)
    pairs = [(2, max(1, length - 2 - i % 3)) for i in range(count)]
    return pad_rows([tuple(random.integers(0, 12, n).astype(np.int32) for n in pair) for pair in pairs])


def trained(section: LearnerSection, shapes: list[tuple[int, int]]):
    """(log-probs of every shape, the weights after one update for each, compilations since the first)."""
    from torch._dynamo.utils import counters

    from penstock.learner.engine import Engine

    engine = Engine(tiny_model(), section, 1)
    made, said = counters["stats"]["unique_graphs"], []
    for number, shape in enumerate(shapes):
        rows = rows_of(*shape, seed=number)
        with torch.no_grad():
            before, _ = window_logprobs(engine, rows)
        logp, _ = window_logprobs(engine, rows)
        assert torch.allclose(before, logp, rtol=0, atol=1e-5)
        said.append(logp.detach())
        engine.backward(-logp.sum() / logp.numel(), True)
        assert engine.step(1e-3).applied
    return said, engine.snapshot(True), counters["stats"]["unique_graphs"] - made


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True, "zero_stage": 1}], ids=["plain", "again"])
def test_a_compiled_engine_learns_what_another_learns(team, changes):
    shapes = [(1, 9), (3, 7), (16, 32), (64, 8), (1, 100), (2, 128), (100, 5), (120, 11), (100, 30), (32, 120)]
    section = LearnerSection(micro_batch_tokens=BUDGET, **changes)
    plain, expected, _ = trained(section, shapes)
    compiled, found, again = trained(section.model_copy(update={"compile": True}), shapes)
    assert again == 0, "what came was compiled at the start"
    assert max(float((a - b).abs().max()) for a, b in zip(compiled, plain, strict=True)) < 1e-4
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-4


def test_a_model_that_does_not_say_what_it_repeats_is_refused(team):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(PenstockError, match=r"set learner\.compile to false"):
        compile_layers(model, BUDGET)


def test_without_a_compiler_it_is_said_before_anything_is_trained(team, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    with pytest.raises(PenstockError, match=r"g\+\+.*set learner.compile to false"):
        compile_layers(tiny.model(0, **{"vocab_size": 32}), BUDGET)
