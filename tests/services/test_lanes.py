"""What an actor does over time: spans of phases, and the file they are appended to."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest

from penstock.services.lanes import CUT, MOST, SHORTEST, Lane, LanesLog, Line, Span


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_phase_lasts_until_the_next_one_begins(clock: Clock) -> None:
    lane = Lane("starting", clock)
    clock.now = 101.0
    lane.enter("generating")
    clock.now = 103.0
    lane.enter("swapping weights")
    assert lane.take() == [Span("starting", 100.0, 101.0), Span("generating", 101.0, 103.0)]
    clock.now = 104.0
    lane.enter("generating")
    assert lane.take() == [Span("swapping weights", 103.0, 104.0)]


def test_the_same_phase_again_is_no_new_span(clock: Clock) -> None:
    lane = Lane("generating", clock)
    for _ in range(10):
        clock.now += 0.1
        lane.enter("generating")
    lane.enter("ended")
    assert lane.take() == [Span("generating", 100.0, pytest.approx(101.0))]


def test_what_is_too_short_to_be_seen_belongs_to_the_phase_before(clock: Clock) -> None:
    lane = Lane("generating", clock)
    clock.now = 101.0
    lane.enter("waiting for scores")
    clock.now += SHORTEST / 2
    lane.enter("generating")
    clock.now = 102.0
    lane.enter("ended")
    assert lane.take() == [Span("generating", 100.0, 102.0)]


def test_a_long_phase_is_handed_out_in_part(clock: Clock) -> None:
    lane = Lane("waiting for groups", clock)
    clock.now += CUT / 2
    assert lane.take() == []
    clock.now += CUT
    assert lane.take() == [Span("waiting for groups", 100.0, 100.0 + 1.5 * CUT)]
    clock.now += 1.0
    lane.enter("training")
    assert lane.take() == [Span("waiting for groups", 100.0 + 1.5 * CUT, 101.0 + 1.5 * CUT)]


def test_no_time_is_lost_whatever_the_phases_do(clock: Clock) -> None:
    random = np.random.default_rng(0)
    lane, found = Lane("a", clock), []
    for _ in range(2000):
        clock.now += float(random.exponential(SHORTEST))
        lane.enter(str(random.choice(["a", "b", "c"])))
        if random.random() < 0.05:
            found += lane.take()
    clock.now += CUT
    found += lane.take()
    assert found[0].begin <= 100.0 + SHORTEST * 20
    assert found[-1].end == clock.now
    gaps = [after.begin - before.end for before, after in itertools.pairwise(found)]
    # A short phase right after spans were taken cannot be joined with them any more; it goes to the one that follows.
    assert max(gaps) == 0.0
    assert all(span.end > span.begin for span in found)


def test_spans_that_nobody_takes_are_bounded(clock: Clock) -> None:
    lane = Lane("a", clock)
    for number in range(3 * MOST):
        clock.now += 1.0
        lane.enter(f"phase {number}")
    assert len(lane.take()) == MOST


def test_the_file_says_what_was_written_and_a_large_one_is_put_aside(tmp_path: Path) -> None:
    path, before = tmp_path / "activity.jsonl", tmp_path / "before.jsonl"
    log = LanesLog(path, before, most_bytes=200)
    log.write({"rollout-0": [], "learner-0": []})
    assert not path.exists()
    log.write({"rollout-0": [Span("generating", 1.00049, 2.0)], "learner-0": []})
    (line,) = path.read_bytes().splitlines()
    assert msgspec.json.decode(line, type=Line).lanes == {"rollout-0": [Span("generating", 1.0, 2.0)]}
    for at in range(20):
        log.write({"rollout-0": [Span("generating", float(at), at + 1.0)]})
    log.close()
    assert before.stat().st_size <= 200 + 60
    assert not path.exists() or path.stat().st_size <= 200
