"""The prompt stream against plain counting."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.rollout.stream import PromptStream


@dataclass
class Row:
    source: str
    row: int

    @property
    def tokens(self) -> Any:
        return np.asarray([self.row + 1], np.int32)

    text = "x"
    columns: Any = None

    def __post_init__(self) -> None:
        self.columns = {"answer": self.row}


class Source:
    def __init__(self, name: str, size: int, weight: float = 1.0) -> None:
        self.name, self.size, self.weight = name, size, weight

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, item: int) -> Row:
        return Row(self.name, item)


def stream(*sources: Source, seed: int = 0, **more: Any) -> PromptStream:
    return PromptStream({s.name: s for s in sources}, seed=seed, **more)


def places(prompts: PromptStream, count: int) -> list[tuple[str, int, int]]:
    return [(p.source, p.row, p.epoch) for p in (prompts[i] for i in range(count))]


def test_each_epoch_gives_every_row_once_in_an_order_of_its_own():
    prompts = stream(Source("a", 7))
    first, second = places(prompts, 14)[:7], places(prompts, 14)[7:]
    assert sorted(row for _, row, _ in first) == sorted(row for _, row, _ in second) == list(range(7))
    assert [row for _, row, _ in first] != [row for _, row, _ in second]
    assert {epoch for *_, epoch in first} == {0} and {epoch for *_, epoch in second} == {1}


def test_the_same_index_is_the_same_prompt_in_any_order_of_asking():
    one, other = (
        stream(Source("a", 50), Source("b", 20, 0.5), seed=3),
        stream(Source("a", 50), Source("b", 20, 0.5), seed=3),
    )
    asked = [other[i] for i in reversed(range(200))]
    assert [one[i] for i in range(200)] == asked[::-1]


def test_another_seed_gives_another_order():
    assert places(stream(Source("a", 30), seed=1), 30) != places(stream(Source("a", 30), seed=2), 30)


def test_without_shuffling_rows_come_as_they_lie():
    assert [row for _, row, _ in places(stream(Source("a", 3), shuffle=False), 6)] == [0, 1, 2, 0, 1, 2]


def test_a_mixture_meets_its_weights_in_every_stretch():
    prompts = stream(Source("a", 11, 3.0), Source("b", 100, 1.0))
    for start in range(0, 80, 8):
        assert Counter(prompts[i].source for i in range(start, start + 8)) == {"a": 6, "b": 2}


def test_a_stream_that_stops_ends_when_its_first_source_has_been_read():
    prompts = stream(Source("a", 4), Source("b", 10), epochs=2, at_end="stop")
    assert prompts.length == 15  # a b a b … a: the eighth row of a is the 15th prompt
    assert Counter(s for s, *_ in places(prompts, 15)) == {"a": 8, "b": 7}


def test_a_stream_that_drops_goes_on_with_the_sources_that_have_rows_left():
    prompts = stream(Source("a", 4), Source("b", 10), Source("c", 2, 0.5), epochs=2)
    assert prompts.length == 2 * (4 + 10 + 2)
    counted = Counter(places(prompts, 32))
    assert set(counted.values()) == {1} and len(counted) == 32


@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.floats(0.01, 10)), min_size=1, max_size=4),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_every_row_comes_exactly_once_per_epoch(sizes: list[tuple[int, float]], epochs: int, seed: int):
    prompts = stream(*(Source(str(k), n, w) for k, (n, w) in enumerate(sizes)), epochs=epochs, seed=seed)
    assert prompts.length == epochs * sum(n for n, _ in sizes)
    assert len(set(places(prompts, prompts.length))) == prompts.length


def test_beyond_the_end_is_an_error_that_says_so():
    with pytest.raises(IndexError, match="prompt 4 is outside of the stream, which has 4"):
        stream(Source("a", 4), epochs=1)[4]


def test_a_source_without_rows_is_refused_by_name():
    with pytest.raises(ValueError, match="source 'b' has none"):
        stream(Source("a", 1), Source("b", 0))
