"""Chunked log-probabilities inside of the engine: two ranks with different numbers of tokens, chunks and rows.

The model's embedding and output layer are so large that ZeRO 3 really shards them, and gathers them for every pass.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from learner_parts import on_two_ranks

from penstock.learner import ranks
from penstock.learner.config import LearnerSection
from penstock.services.logprob_head import KeptTokens
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import pad_rows, window_outputs

pytestmark = pytest.mark.engine
VOCABULARY, TEMPERATURE = 4096, 0.7003
CHUNK = 2
PASSES = {
    0: [((3, 9), (2, 5)), ((1, 4),), ((4, 1),)],
    1: [((2, 1),), ((5, 0), (2, 2)), ()],
}
"""Rank → its micro-batches, each of rows (prompt, response); 9, 2 and 1 chunks against 1, 1 and 1."""
MODELS = ("tied", "untied", "experts")


def model_of(kind):
    family = "Qwen3Moe" if kind == "experts" else "Qwen3"
    return tiny.model(0, family, vocab_size=VOCABULARY, tie_word_embeddings=kind == "tied")


def rows_of(rank, number):
    random = np.random.default_rng([rank, number])
    return [tuple(random.integers(0, VOCABULARY, n).astype(np.int32) for n in pair) for pair in PASSES[rank][number]]


def kept_of(rows):
    """Every token with its two neighbours, but nothing is known of the first of each row."""
    sets = [
        [] if t == 0 else sorted({int(token), (int(token) + 1) % VOCABULARY, 7})
        for _, response in rows
        for t, token in enumerate(response)
    ]
    counts, ids = [len(left) for left in sets], list(itertools.chain.from_iterable(sets))
    return KeptTokens(torch.tensor(counts, dtype=torch.long), torch.tensor(ids, dtype=torch.long))


def loss_of(logp, entropy, before):
    return (-logp - 0.1 * entropy + 0.5 * (before - 1) ** 2).sum()


@functools.cache
def by_hand(kind):
    """Gradients of all rows of both ranks: each row alone, token by token, from the model's own logits."""
    model, readout = model_of(kind), torch.nn.Linear(32, 1)
    torch.nn.init.zeros_(readout.weight)
    torch.nn.init.zeros_(readout.bias)
    for rank, number in ((r, n) for r in PASSES for n in range(3)):
        for prompt, response in rows_of(rank, number):
            if len(response) == 0:
                continue
            kept = kept_of([(prompt, response)])
            ids = torch.as_tensor(np.concatenate([prompt, response])).long()
            output = model(input_ids=ids[None], output_hidden_states=True)
            before = readout(output.hidden_states[-1][0])[len(prompt) - 1 : -1, 0]
            terms = []
            for t, token in enumerate(response):
                z = output.logits[0, len(prompt) - 1 + t] / TEMPERATURE
                first = int(kept.counts[:t].sum())
                left = kept.tokens[first : first + int(kept.counts[t])]
                z = z[left] if len(left) else z
                place = int((left == int(token)).nonzero()) if len(left) else int(token)
                logs = z.log_softmax(-1)
                terms.append((logs[place], -(logs.exp() * logs).sum()))
            logp, entropy = (torch.stack(part) for part in zip(*terms, strict=True))
            loss_of(logp, entropy, before).backward()
    named = {f"model.{name}": p for name, p in model.named_parameters()}
    named |= {f"value_head.{name}": p for name, p in readout.named_parameters()}
    return {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in named.items()}


def gradients_of(kind, section, rank):
    from deepspeed.utils import safe_get_full_grad

    from penstock.learner.engine import Engine

    model = LogprobModel(model_of(kind), value_head=True, chunk_tokens=CHUNK)
    engine = Engine(model, section, 2)
    for number in range(3):
        rows = rows_of(rank, number)
        padded = pad_rows(rows, device=engine.device)
        found = window_outputs(engine, padded, TEMPERATURE, entropy_gradient=True, kept=kept_of(rows))
        before = torch.where(padded.responses, found.values[:, :-1], 1.0)
        engine.backward(loss_of(found.logp, found.entropy, before), last=number == 2)
    return {name: safe_get_full_grad(p).clone() for name, p in model.named_parameters()}


def two_ranks(rank, address, folder):
    torch.set_num_threads(1)
    team = ranks.join(rank, 2, address, 120.0)
    results = {}
    for kind, stage, recompute in ((k, s, r) for k in MODELS for s in range(4) for r in (False, True)):
        section = LearnerSection(zero_stage=stage, ranks=2, gradient_checkpointing=recompute)
        results[f"{kind} {stage} {recompute}"] = gradients_of(kind, section, rank)
    results["bfloat16"] = gradients_of("tied", LearnerSection(zero_stage=3, ranks=2, dtype="bfloat16"), rank)
    torch.save(results, Path(folder) / f"rank-{rank}.pt")
    team.barrier()


@pytest.fixture(scope="module")
def pair():
    """The results of both ranks."""
    with tempfile.TemporaryDirectory() as folder:
        return on_two_ranks(two_ranks, Path(folder))


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 1e-3)
        assert float((found[name] - gradient).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradients_of_two_ranks_are_those_worked_out_by_hand(pair, kind, stage, recompute):
    for results in pair:
        assert_same(results[f"{kind} {stage} {recompute}"], by_hand(kind), 2e-5)


def test_bfloat16_shards_give_the_same_gradients_up_to_rounding(pair):
    for results in pair:
        assert_same(results["bfloat16"], by_hand("tied"), 0.1)
