"""What is written of a sampled answer token by token."""

from __future__ import annotations

import msgspec
import numpy as np

from penstock.services.samples import MARKS, SpanRecord, TokenRecord, numbers, stretches


def _columns(length: int) -> dict[str, np.ndarray]:
    return {
        "tokens": np.arange(length, dtype=np.int32),
        "marks": np.ones(length, np.int64),
        "logp_sampler": np.linspace(-1, 0, length, dtype=np.float32),
    }


def test_a_short_answer_is_one_stretch() -> None:
    (whole,) = stretches(_columns(3), None, 4)
    assert (whole.start, whole.tokens, whole.logp_sampler) == (0, [0, 1, 2], [-1.0, -0.5, 0.0])


def test_of_a_long_answer_the_first_and_the_last_tokens_are_kept() -> None:
    first, last = stretches(_columns(100), lambda ids: [f"<{i}>" for i in ids], 5)
    assert (first.start, first.tokens) == (0, [0, 1, 2])
    assert (last.start, last.tokens, last.texts) == (98, [98, 99], ["<98>", "<99>"])


def test_one_token_is_enough_and_none_is_nothing() -> None:
    assert [(s.start, s.tokens) for s in stretches(_columns(100), None, 1)] == [(0, [0])]
    assert stretches(_columns(0), None, 8) == []


def test_what_is_no_number_is_none_and_floats_keep_seven_decimals() -> None:
    column = np.asarray([-0.12345678, np.nan, -np.inf, 1e-9], np.float32)
    assert numbers(column) == [-0.1234568, None, None, 0.0]


def test_a_token_of_an_answer_of_any_length_takes_less_than_a_hundred_bytes() -> None:
    # What the run file says of the size of a recorded token.
    random = np.random.default_rng(0)
    length, kept = 65_536, 512
    columns = _columns(length) | {"tokens": random.integers(0, 150_000, length), "marks": np.full(length, 3)}
    for name in ("logp_sampler", "logp_learner", "logp_reference", "advantages", "trust_weights"):
        columns[name] = random.normal(-1, 1, length).astype(np.float32)
    record = TokenRecord(
        length=length,
        begins_at="0.1",
        spans=[SpanRecord(version="0.1", count=length, lag=0)],
        stretches=stretches(columns, lambda ids: [" word" for _ in ids], kept),
    )
    assert len(msgspec.json.encode(record)) / kept < 100


def test_marks_are_bits_of_their_own() -> None:
    assert sum(MARKS.values()) == 2 ** len(MARKS) - 1
