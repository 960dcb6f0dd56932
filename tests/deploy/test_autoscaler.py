"""The autoscaler in worlds small enough to know the right number: a learner, workers, and what joins and leaves."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.deploy.autoscaler import Autoscaler, Load
from penstock.rollout.config import AutoscaleSection

UP_WAIT, DOWN_IDLE = 0.2, 0.15
QUIET = {"up_after": 60.0, "down_after": 300.0, "again": 1800.0}


@dataclass
class World:
    """A learner that could keep `ratio` workers busy; both go at the pace of the slower. Looked at every ten seconds.

    `start` is how long a worker takes until it has delivered; `useful`: more workers than these add nothing.
    """

    ratio: float
    workers: int
    start: float = 120.0
    useful: int = 10**6
    noise: float = 0.0
    places: int = 10**6
    step_seconds: float = 10.0
    seed: int = 0
    seen: float = 1.0
    """The part of the workers' idleness that shows: one with a last long answer in its hands is not idle."""

    def __post_init__(self) -> None:
        self.wanted, self.coming = self.workers, []
        self.random = np.random.default_rng(self.seed)
        self.steps = 0.0
        self.changes: list[tuple[float, int]] = []
        self.now = 0.0

    def load(self, seconds: float = 10.0) -> Load:
        able = min(self.workers, self.useful)
        wait, idle = max(0.0, 1 - able / self.ratio), max(0.0, 1 - self.ratio / max(1, self.workers))
        shaken = self.random.normal(size=2) * self.noise
        wait = float(np.clip(wait + shaken[0], 0, 1))
        before, self.steps = int(self.steps), self.steps + seconds / self.step_seconds * (1 - wait)
        return Load(
            seconds=seconds,
            workers=self.workers,
            coming=self.wanted - self.workers if self.wanted > self.workers else 0,
            waited=seconds * wait,
            idle=float(np.clip(self.seen * idle + shaken[1], 0, 1)) if idle else 0.0,
            queue=2 * (0.3 if wait > 0.02 else 0.9 if idle > 0.02 else 0.5),
            max_lag=2,
            steps=int(self.steps) - before,
            places=self.places,
        )

    def run(self, scaler: Autoscaler, seconds: float) -> None:
        ends = self.now + seconds
        while self.now < ends:
            self.now += 10.0
            self.workers += sum(at <= self.now for at in self.coming)
            self.coming = [at for at in self.coming if at > self.now]
            decision = scaler.look(self.load(), self.wanted)
            if decision is None:
                continue
            self.changes.append((self.now, decision.count))
            if decision.count > self.wanted:
                self.coming += [self.now + self.start] * (decision.count - self.wanted)
            else:
                self.workers, self.coming = min(self.workers, decision.count), []
            self.wanted = decision.count


def rules(least: int = 1, most: int = 16, **changes) -> AutoscaleSection:
    return AutoscaleSection(min=least, max=most, up_wait=UP_WAIT, down_idle=DOWN_IDLE, **{**QUIET, **changes})


def settled(world: World) -> int:
    """Two hours, then four more in which nothing may change."""
    scaler = Autoscaler(rules())
    world.run(scaler, 2 * 3600)
    before = len(world.changes)
    world.run(scaler, 4 * 3600)
    assert world.changes[before:] == []
    return world.wanted


@pytest.mark.parametrize(("ratio", "right"), [(0.4, 1), (1.0, 1), (2.0, 2), (2.6, 3), (5.0, 4), (7.9, 7), (40.0, 16)])
def test_from_one_worker_it_goes_up_to_the_fewest_that_keep_the_wait_below_its_bound(ratio, right):
    """n workers leave a wait of 1 − n/ratio: the right number is ratio × 0.8, rounded up, within the bounds."""
    assert right == min(16, max(1, math.ceil(ratio * (1 - UP_WAIT))))
    assert settled(World(ratio, workers=1)) == right


@pytest.mark.parametrize(("ratio", "right"), [(0.4, 1), (2.0, 2), (2.6, 3), (5.0, 5), (5.5, 5), (12.4, 12)])
def test_from_many_workers_it_goes_down_while_that_leaves_half_of_that_wait_at_most(ratio, right):
    """n workers leave a wait of 1 − n/ratio; and once there is any, there are no workers to spare."""
    assert right == max(1, math.ceil(ratio * (1 - UP_WAIT / 2)), math.floor(ratio))
    assert settled(World(ratio, workers=16)) == right


def test_up_is_fast_and_down_is_slow():
    up, down = World(10.0, workers=1, step_seconds=1.0), World(10.0, workers=16)
    up.run(Autoscaler(rules()), 3600)
    assert [count for _, count in up.changes] == [2, 4, 8], "twice as many at a time"
    assert up.changes[-1][0] <= 60 + 2 * (120 + 60 + 20)
    down.run(Autoscaler(rules()), 3600)
    assert [count for _, count in down.changes] == [15, 14, 13, 12, 11, 10]
    assert all(later - earlier >= 300 for (earlier, _), (later, _) in zip(down.changes, down.changes[1:], strict=False))


@settings(max_examples=15, deadline=None)
@given(
    ratio=st.floats(0.2, 30),
    workers=st.integers(2, 9),
    start=st.floats(0, 900),
    noise=st.floats(0, 0.15),
    step_seconds=st.floats(1, 400),
    seed=st.integers(0, 1000),
)
def test_whatever_the_load_it_stays_within_its_bounds_and_does_not_swing(
    ratio, workers, start, noise, step_seconds, seed
):
    """Under a constant load, noise of measurement may lead to a wrong step now and then, ever more seldom: a number
    that proved wrong is not tried again for half an hour, then an hour, two, four. So may idleness that is as little
    as idleness that does not show."""
    hours = 10
    world = World(ratio, workers, start=start, noise=noise, step_seconds=step_seconds, seed=seed)
    world.run(Autoscaler(rules(2, 9)), hours * 3600)
    counts = [count for _, count in world.changes]
    assert all(2 <= count <= 9 for count in counts)
    low, high = (min(9, max(2, math.ceil(x))) for x in (ratio * (1 - UP_WAIT - noise), ratio / (1 - DOWN_IDLE) + 1))
    hidden = any(0 <= 1 - ratio / count < 0.05 for count in range(low, high + 1))
    settled = [count for at, count in world.changes if at <= 2 * 3600]
    changes = [(2 * 3600, settled[-1] if settled else workers)]
    changes += [*(change for change in world.changes if change[0] > 2 * 3600), (hours * 3600, world.wanted)]
    there = sum(to - at for (at, count), (to, _) in itertools.pairwise(changes) if low <= count <= high)
    turns = sum((b > a) != (c > b) for a, b, c in zip([workers, *counts], counts, counts[1:], strict=False))
    assert low <= world.wanted <= high or (hidden and there > 0.75 * (hours - 2) * 3600)
    assert turns <= (12 if hidden or noise >= 0.05 else 2)


def test_a_worker_that_starts_is_not_missing():
    world = World(6.0, workers=1, start=1e9)
    world.run(Autoscaler(rules()), 3600)
    assert [count for _, count in world.changes] == [2]


def test_what_does_not_help_is_taken_back_and_tried_again_ever_more_seldom():
    """Two engines that share what one could use alone: a second adds nothing."""
    world = World(3.0, workers=1, useful=1)
    world.run(Autoscaler(rules()), 24 * 3600)
    ups = [at for at, count in world.changes if count == 2]
    assert {count for _, count in world.changes} == {1, 2} and world.changes[-1][1] == 1
    gaps = np.diff(ups)
    assert len(ups) <= 7
    assert (gaps >= [1800 * min(2**n, 16) for n in range(len(gaps))]).all()


def test_there_are_no_more_workers_than_the_gate_has_places():
    assert settled(World(20.0, workers=1, places=3)) == 3


def test_where_the_workers_have_nothing_to_do_more_of_them_do_not_help():
    """The gate is closed by hand, or the scorers are slow: everybody waits."""
    scaler, world = Autoscaler(rules()), World(1.0, workers=2)
    for _ in range(100):
        load = replace(world.load(), waited=9.0, idle=0.85, queue=0.0, steps=1)
        assert scaler.look(load, 2) is None


@pytest.mark.parametrize("ratio", [1.0, 4.5, 5.2])
def test_where_no_idleness_shows_the_age_of_the_queue_says_that_there_are_too_many(ratio):
    """It goes down until the learner waits a little, and one that proves too few is not tried again soon."""
    world = World(ratio, workers=8, seen=0.0)
    world.run(Autoscaler(rules()), 12 * 3600)
    counts = [count for _, count in world.changes]
    right = math.ceil(ratio * (1 - UP_WAIT))
    assert counts[: 8 - math.ceil(ratio)] == list(range(7, math.ceil(ratio) - 1, -1))
    assert right <= world.wanted <= math.ceil(ratio)
    assert len(counts) <= 8 - right + 2


def test_workers_that_have_nothing_to_do_are_too_many_even_where_the_learner_waits():
    """The gate opens late, or the scorers are slow: five workers are idle for half of their time all the same."""
    scaler, world = Autoscaler(rules()), World(1.0, workers=5)
    looks = [scaler.look(replace(world.load(), waited=2.0, idle=0.6, queue=0.2), 5) for _ in range(100)]
    assert next(decision.count for decision in looks if decision) == 4


def test_steps_that_are_longer_than_the_window_are_looked_at_whole():
    """A learner that trains for 300 seconds and waits for 30: a window of one minute would see nothing but waiting."""
    scaler = Autoscaler(rules())
    for _ in range(40):
        for second in range(0, 330, 10):
            waiting = second >= 300
            load = Load(10.0, 1, 0, 10.0 * waiting, 0.0, 0.5, 2, int(second == 0), 100)
            assert scaler.look(load, 1) is None


def test_a_learner_that_gets_nothing_at_all_is_helped_before_there_is_a_step_to_count():
    scaler = Autoscaler(rules())
    starved = Load(10.0, 1, 0, 10.0, 0.0, 0.1, 2, 0, 100)
    decisions = [scaler.look(starved, 1) for _ in range(60)]
    assert next(d for d in decisions if d).count == 2


def test_a_number_that_the_cluster_refuses_is_not_asked_for_again_at_once():
    scaler = Autoscaler(rules())
    world = World(8.0, workers=4)
    asked = []
    for _ in range(6 * 60):
        world.now += 10
        decision = scaler.look(world.load(), 4)
        if decision is not None:
            asked.append((world.now, decision.count))
            scaler.refused(decision.count)
    assert [count for _, count in asked][:3] == [7, 6, 5], "fewer may be had"
    assert len(asked) <= 5


def test_a_number_out_of_bounds_is_brought_back_at_once():
    scaler = Autoscaler(rules(2, 5))
    load = World(1.0, workers=1).load()
    assert scaler.look(load, 0).count == 2
    assert scaler.look(load, 9).count == 5


def test_the_reason_says_what_was_seen():
    world, scaler = World(4.0, workers=1), Autoscaler(rules())
    while (decision := scaler.look(world.load(), 1)) is None:
        pass
    said = "with 1 workers the learner waited 75% of 90 s, they had nothing to do for 0%, and groups waited 0.6 steps"
    assert decision.why == said
