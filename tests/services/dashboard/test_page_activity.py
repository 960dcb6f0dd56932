"""Lanes as a page draws them: exact where there is room, otherwise what took most of a dot's time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock.services.dashboard.activity import Activity, coarsened, seconds
from penstock.services.lanes import LanesLog, Span


def test_spans_that_can_be_seen_are_as_they_were() -> None:
    spans = [Span("generating", 0.0, 1.03), Span("swapping weights", 1.03, 1.2), Span("generating", 1.2, 3.0)]
    assert coarsened(spans, 0.1) == spans


def test_of_several_in_one_dot_the_longest_is_drawn() -> None:
    spans = [Span("a", 10.01, 10.02), Span("b", 10.02, 10.07), Span("a", 10.07, 10.09), Span("c", 10.2, 11.0)]
    assert coarsened(spans, 0.1) == [Span("b", 10.01, 10.09), Span("c", 10.2, 11.0)]


def test_pieces_of_one_phase_are_joined_but_not_over_a_gap() -> None:
    spans = [Span("a", 0.0, 5.0), Span("a", 5.0, 10.0), Span("a", 12.0, 13.0)]
    assert coarsened(spans, 0.5) == [Span("a", 0.0, 10.0), Span("a", 12.0, 13.0)]


def test_what_is_drawn_is_bounded_and_covers_the_same_time() -> None:
    random = np.random.default_rng(0)
    now, spans = 100.0, []
    for _ in range(5000):
        length = float(random.exponential(0.05))
        spans.append(Span(str(random.choice(["a", "b", "c"])), now, now + length))
        now += length
    drawn = coarsened(spans, 1.0)
    assert len(drawn) <= 2 * (now - 100.0) + 2
    assert sum(seconds(drawn).values()) == pytest.approx(now - 100.0)


def test_lanes_are_cut_to_what_is_asked_for_and_their_shares_are_exact(tmp_path: Path) -> None:
    log = LanesLog(tmp_path / "activity.jsonl", tmp_path / "before.jsonl")
    log.write({"rollout-0": [Span("generating", 0.0, 8.0), Span("swapping weights", 8.0, 8.1)]})
    log.write({"rollout-0": [Span("generating", 8.1, 12.0)], "learner-0": [Span("training", 1.0, 2.0)]})
    activity = Activity(tmp_path / "activity.jsonl", tmp_path / "before.jsonl")
    assert activity.ends == (0.0, 0.0)
    assert activity.follow()
    assert not activity.follow()
    assert activity.ends == (0.0, 12.0)
    assert activity.between(6.0, 10.0, 1.0)["rollout-0"][0] == Span("generating", 6.0, 8.0)
    assert "learner-0" not in activity.between(6.0, 10.0, 1.0)
    shares = activity.shares(6.0, 10.0)["rollout-0"]
    assert shares == {"generating": pytest.approx(3.9), "swapping weights": pytest.approx(0.1)}


def test_what_was_put_aside_is_read_first(tmp_path: Path) -> None:
    path, before = tmp_path / "activity.jsonl", tmp_path / "before.jsonl"
    log = LanesLog(path, before, most_bytes=1)
    log.write({"a": [Span("old", 0.0, 1.0)]})
    LanesLog(path, before).write({"a": [Span("new", 1.0, 2.0)]})
    activity = Activity(path, before)
    activity.follow()
    assert [span.phase for span in activity.between(0.0, 9.0, 0.1)["a"]] == ["old", "new"]


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "activity.jsonl"
    path.write_bytes(b'nonsense\n{"lanes": {"\xff": []}}\n{"lanes": {"a": [["generating", 1, 2]]}}\n')
    activity = Activity(path, tmp_path / "before.jsonl")
    activity.follow()
    assert activity.between(0.0, 9.0, 0.1) == {"a": [Span("generating", 1.0, 2.0)]}
