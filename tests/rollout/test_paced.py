"""The generator of drills: its pace, its lengths, and that it says of its tokens what it drew them from."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builders import prompt

from penstock.rollout.paced import PacedGenerator
from penstock.services.contracts import Request
from penstock.services.trajectory import Sampling
from penstock.services.versions import Version

VOCABULARY, END = 11, 4
LONG = Sampling(max_tokens=400)


def paced(rate: float = 1e9, mean_length: float = 20.0, **changes: object) -> PacedGenerator:
    settings = {"vocabulary": VOCABULARY, "end": END, "limit": 1000, "slots": 64, "seed": 3, "name": "r"}
    pace = {"tokens_per_second": rate, "mean_length": mean_length}
    return PacedGenerator(**settings | pace | changes, text_of=lambda tokens: ",".join(map(str, tokens)))


def finished(generator: PacedGenerator, answers: int, sampling: Sampling = LONG) -> list:
    for i in range(answers):
        generator.submit(Request(f"a{i}", prompt(), sampling))
    done = []
    while generator.in_flight:
        done += [completion for _, completion in generator.step()]
    return done


def test_lengths_are_geometric_with_the_mean_that_was_asked_for():
    lengths = np.array([len(c.tokens) for c in finished(paced(), 2000)])
    # A geometric length has a variance of mean·(mean − 1): the mean of 2000 lies within four of its deviations.
    assert abs(lengths.mean() - 20) < 4 * math.sqrt(20 * 19 / 2000)
    assert abs((lengths == 1).mean() - 1 / 20) < 0.02


def test_log_probabilities_are_those_of_a_distribution_and_other_tokens_are_alike():
    done = finished(paced(), 500)
    tokens = np.concatenate([c.tokens for c in done])
    logprobs = np.concatenate([c.logprobs for c in done])
    by_token = {int(t): set(logprobs[tokens == t].round(5).tolist()) for t in np.unique(tokens)}
    assert set(by_token) == set(range(VOCABULARY))
    assert all(len(found) == 1 for found in by_token.values())
    assert sum(math.exp(next(iter(found))) for found in by_token.values()) == pytest.approx(1, abs=1e-4)
    counts = np.bincount(tokens[tokens != END], minlength=VOCABULARY)
    expected = (tokens != END).sum() / (VOCABULARY - 1)
    assert abs(np.delete(counts, END) - expected).max() < 5 * math.sqrt(expected)


def test_all_requests_together_keep_the_pace(monkeypatch):
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr("penstock.rollout.paced.time", clock)
    done = finished(paced(rate=2000.0, mean_length=1e9), 8, Sampling(max_tokens=50))
    assert sum(len(c.tokens) for c in done) == 400
    assert now[0] - 100.0 == pytest.approx(400 / 2000, abs=8 / 2000)


def test_an_answer_that_ends_has_the_text_of_its_tokens_without_the_end():
    (done,) = finished(paced(mean_length=3.0), 1)
    assert done.finish == "stop" and done.tokens[-1] == END
    assert done.text == ",".join(map(str, done.tokens[:-1].tolist()))
    (cut,) = finished(paced(mean_length=1e9), 1, Sampling(max_tokens=5))
    assert cut.finish == "length" and len(cut.tokens) == 5


def test_a_swap_fetches_the_version_and_marks_the_tokens_after_it():
    fetched: list[Version] = []
    generator = paced(mean_length=1e9, fetch=fetched.append)
    generator.submit(Request("a", prompt(), Sampling(max_tokens=4)))
    generator.step()
    generator.swap(Version(0, 1))
    assert fetched == [Version(0, 1)]
    assert [(span.step, span.count) for span in generator.spans("a")] == [(0, 1)]
    generator.step()
    assert [(span.step, span.count) for span in generator.spans("a")] == [(0, 1), (1, 1)]


def test_filters_are_refused():
    with pytest.raises(ValueError, match="top_p and top_k mean nothing"):
        paced().submit(Request("a", prompt(), Sampling(top_k=2)))


def test_what_the_drill_recipe_makes_can_be_read_again(tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = Path(__file__).parents[2] / "recipes" / "drill" / "prepare.py"
    runpy.run_path(str(recipe))["prepare"](tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("3+4=")["input_ids"] == [5, 12, 6, 13]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.eos_token_id == 0
    assert len((tmp_path / "sums.jsonl").read_text().splitlines()) == 100
