"""What top-p and top-k left to draw from: the real engine's sets against transformers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from rollout_lab import VOCABULARY, Lab, finish, logits_of, prompt_of, run_up_to

from penstock.services.contracts import Request
from penstock.services.trajectory import Completion, Kept, Sampling

pytestmark = pytest.mark.engine

PROMPT = [5, 6, 7, 8] * 5
FILTERS = [
    pytest.param(Sampling(max_tokens=30, top_k=5), id="top_k"),
    pytest.param(Sampling(max_tokens=30, top_p=0.9, temperature=0.6), id="top_p"),
    pytest.param(Sampling(max_tokens=30, top_k=8, top_p=0.8, temperature=0.7), id="both"),
]


def sample(engine: Any, sampling: Sampling, count: int = 8) -> list[Completion]:
    for i in range(count):
        engine.submit(Request(key=f"m{i}", prompt=prompt_of(PROMPT), sampling=sampling))
    return list(finish(engine).values())


def sets_of(kept: Kept) -> list[set[int]]:
    return [set(each.tolist()) for each in np.split(kept.tokens, np.cumsum(kept.counts)[:-1])]


def left_by(logits: Any, sampling: Sampling) -> set[int]:
    """What the definitions leave of one position's logits."""
    scaled = logits / sampling.temperature
    order = np.argsort(-scaled)
    if sampling.top_k:
        order = [i for i in order if scaled[i] >= scaled[order[sampling.top_k - 1]]]
    shares = np.exp(scaled[order] - scaled.max())
    shares /= shares.sum()
    before = np.cumsum(shares) - shares
    return {int(i) for i, mass in zip(order, before, strict=True) if mass < sampling.top_p}


def renormalised(logits: Any, token: int, kept: set[int], temperature: float) -> float:
    ids = sorted(kept)
    scaled = logits / temperature
    own = scaled[token] if token in kept else -np.inf
    return float(own - np.logaddexp.reduce(scaled[ids]))


@pytest.mark.parametrize("sampling", FILTERS)
def test_logprobs_renormalised_over_the_kept_set_are_the_engines(lab: Lab, engine: Any, sampling: Sampling):
    for answer in sample(engine, sampling):
        tokens = answer.tokens.tolist()
        logits = logits_of(lab.models[0], PROMPT, tokens)
        assert answer.kept is not None and answer.kept.counts.min() > 0
        sets = sets_of(answer.kept)
        assert sets == [left_by(row, sampling) for row in logits]
        expected = [
            renormalised(row, token, kept, sampling.temperature)
            for row, token, kept in zip(logits, tokens, sets, strict=True)
        ]
        assert np.abs(answer.logprobs - expected).max() < 1e-5
        assert all(np.all(np.diff(sorted(kept)) > 0) for kept in sets)


def test_tokens_as_likely_as_the_last_one_are_kept_too(lab: Lab, engine: Any):
    twins = copy.deepcopy(lab.models[0])
    rows = twins.get_input_embeddings().weight.data
    rows[10:20] = rows[10]  # ten tokens that are equally likely at every position
    engine.swap(lab.publish(twins))
    ties = 0
    for answer in sample(engine, Sampling(max_tokens=30, top_k=3), count=16):
        assert answer.kept is not None
        logits = logits_of(twins, PROMPT, answer.tokens.tolist())
        for row, token, kept, found in zip(logits, answer.tokens, sets_of(answer.kept), answer.logprobs, strict=True):
            assert len(kept) >= 3 and len(kept & set(range(10, 20))) in (0, 1, 2, 3, 10)
            ties += len(kept) > 3
            assert abs(renormalised(row, int(token), kept, 1.0) - found) < 1e-5
    assert ties > 0


def test_a_set_larger_than_what_is_recorded_is_unknown(engine: Any):
    (answer,) = sample(engine, Sampling(max_tokens=10, top_k=31), count=1)
    assert answer.kept is not None and answer.kept.counts.tolist() == [0] * len(answer.tokens)
    (answer,) = sample(engine, Sampling(max_tokens=10, top_k=30), count=1)
    assert answer.kept is not None and answer.kept.counts.tolist() == [30] * len(answer.tokens)
    (wide,) = sample(engine, Sampling(max_tokens=40, top_p=0.95, temperature=1.5), count=1)
    assert wide.kept is not None and (wide.kept.counts == 0).any() and wide.kept.counts.max() <= 30


def test_without_a_filter_and_for_greedy_answers_nothing_is_recorded(engine: Any):
    for sampling in (Sampling(max_tokens=5), Sampling(max_tokens=5, temperature=0.0, top_k=3)):
        (answer,) = sample(engine, sampling, count=1)
        assert answer.kept is None


def test_sets_are_handed_on_and_cut_with_their_tokens(lab: Lab, engine: Any):
    sampling = Sampling(max_tokens=30, top_k=5)
    run_up_to(engine, 10, lambda: engine.submit(Request(key="e", prompt=prompt_of(PROMPT), sampling=sampling)))
    part = engine.take_back(["e"])["e"]
    assert part.kept is not None and part.kept.counts.tolist() == [5] * 10
    engine.swap(lab.publish(lab.models[1]))
    again = Request(key="f", prompt=prompt_of(PROMPT), sampling=sampling, resume=part)
    run_up_to(engine, 1, lambda: engine.submit(again))
    ((_, answer),) = engine.cut(["f"])
    assert answer.kept is not None and answer.kept.counts.tolist() == [5] * 11
    assert answer.kept.tokens[:50].tolist() == part.kept.tokens.tolist()
    last = logits_of(lab.models[1], PROMPT, answer.tokens.tolist())[-1]
    assert sets_of(answer.kept)[-1] == left_by(last, sampling)


def test_a_mask_that_is_ignored_or_derived_anew_gives_other_logprobs(lab: Lab, engine: Any):
    """What `keep_mask` is for. The learner is one small step ahead of the sampler."""
    import torch

    sampling = Sampling(max_tokens=30, top_k=5)
    ahead = copy.deepcopy(lab.models[0])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in ahead.parameters():
            parameter += 0.003 * torch.randn_like(parameter)
    gaps: dict[str, list[float]] = {"kept": [], "ignored": [], "derived": []}
    for answer in sample(engine, sampling, count=32):
        assert answer.kept is not None
        tokens = answer.tokens.tolist()
        for row, token, kept, drawn in zip(
            logits_of(ahead, PROMPT, tokens), tokens, sets_of(answer.kept), answer.logprobs, strict=True
        ):
            for name, chosen in (
                ("kept", kept),
                ("ignored", set(range(len(VOCABULARY)))),
                ("derived", left_by(row, sampling)),
            ):
                gaps[name].append(renormalised(row, token, chosen, 1.0) - float(drawn))
    kept, ignored, derived = (np.asarray(gaps[name]) for name in ("kept", "ignored", "derived"))
    assert np.isfinite(kept).all() and np.abs(kept).mean() < 0.1
    assert ignored.mean() < -5 * np.abs(kept).mean()  # every token looks less likely than it was
    assert np.isinf(derived).any()  # tokens that were drawn could not have been
