"""The frozen model's log-probabilities equal those of a plain forward pass, however groups are batched."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import tiny
import torch
from builders import completion, prompt

from penstock.reward.config import ReferenceSection
from penstock.reward.reference import ReferenceScorer, load_reference
from penstock.services.model_config import ModelSection
from penstock.services.models import save_model
from penstock.services.trajectory import Kept


@pytest.fixture(scope="module")
def model():
    return tiny.model()


def plain(model, prompt_tokens, tokens, temperature):
    """One row alone, by log_softmax over the whole vocabulary."""
    ids = torch.tensor([[*prompt_tokens, *tokens]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0] / temperature
    table = torch.log_softmax(logits.double(), -1)
    first = len(prompt_tokens) - 1
    return [table[first + i, token].item() for i, token in enumerate(tokens)]


@pytest.mark.parametrize("batch_tokens", [1, 24, 10_000])
def test_groups_of_unequal_lengths_agree_with_rows_alone(model, batch_tokens):
    rng = np.random.default_rng(0)
    groups = [
        ([*rng.integers(2, 20, n)], [[*rng.integers(2, 20, m)] for m in lengths])
        for n, lengths in [(3, (5, 1)), (7, (2, 9, 4)), (1, (3,))]
    ]
    scorer = ReferenceScorer(model, batch_tokens, temperature=0.7)
    try:
        futures = [
            scorer.submit(prompt(i, tokens), [completion(member) for member in members])
            for i, (tokens, members) in enumerate(groups)
        ]
        for future, (tokens, members) in zip(futures, groups, strict=True):
            for found, member in zip(future.result(60), members, strict=True):
                assert found.dtype == np.float32
                assert found.tolist() == pytest.approx(plain(model, tokens, member, 0.7), abs=1e-5)
        assert scorer.tokens_per_second > 0
    finally:
        scorer.close()


def test_the_reference_is_renormalised_over_the_tokens_that_were_kept_at_sampling(model):
    # Of the second token nothing is known: it counts over the whole vocabulary.
    kept = Kept(counts=np.array([2, 0, 1], np.int32), tokens=np.array([4, 9, 6], np.int32))
    scorer = ReferenceScorer(model, 100, temperature=0.7)
    try:
        (found,) = scorer.submit(prompt(), [completion((4, 5, 6), kept=kept)]).result(60)
    finally:
        scorer.close()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, 2, 3, 4, 5]])).logits[0].double() / 0.7
    first = logits[2, 4] - torch.logsumexp(logits[2, [4, 9]], 0)
    assert found.tolist() == pytest.approx([first.item(), logits[3].log_softmax(-1)[5].item(), 0.0], abs=1e-5)


def broken(*_):
    raise RuntimeError("no memory for that")


def test_a_model_that_fails_fails_its_groups_and_the_next_one_is_tried():
    model = tiny.model()
    scorer = ReferenceScorer(model, 100, 1.0)
    model.model.register_forward_pre_hook(broken)
    try:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no memory for that"):
                scorer.submit(prompt(), [completion()]).result(30)
    finally:
        scorer.close()


def test_close_leaves_no_thread_and_no_waiter(model):
    before = set(threading.enumerate())
    scorer = ReferenceScorer(model, 1, 1.0)
    futures = [scorer.submit(prompt(i), [completion()] * 4) for i in range(50)]
    assert set(threading.enumerate()) > before
    scorer.close()
    scorer.close()
    assert set(threading.enumerate()) <= before
    for future in futures:
        assert future.done()
        if not future.cancelled():
            future.result(0)
    with pytest.raises(CancelledError):
        futures[-1].result(0)
    with pytest.raises(RuntimeError, match="closed"):
        scorer.submit(prompt(), [completion()])


def test_the_reference_is_the_starting_model_by_default_and_frozen(tmp_path, model):
    save_model(model, tiny.tokenizer(), tmp_path / "start")
    scorer = load_reference(ReferenceSection(), ModelSection(path=str(tmp_path / "start")), temperature=1.0)
    try:
        (found,) = scorer.submit(prompt(), [completion((4, 5))]).result(60)
        assert found.tolist() == pytest.approx(plain(model, (1, 2, 3), (4, 5), 1.0), abs=1e-5)
        assert not any(p.requires_grad for p in scorer._model.parameters())
    finally:
        scorer.close()
