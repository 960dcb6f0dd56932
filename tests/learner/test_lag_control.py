"""The bound on the lag follows what it costs and what it gains, in worlds where both are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.learner.config import AdaptiveLag, StalenessSection
from penstock.learner.lag_control import LagControl


def rules(**changes) -> AdaptiveLag:
    return AdaptiveLag(**{"min": 1, "max": 8, "target_ess": 0.9, "margin": 0.02, "every": 5, "again": 100} | changes)


class World:
    """`ess(lag)` is what the tokens of so old groups are worth, `wait(bound)` what the learner waits under a bound. The
    bound shows in the groups one after the other: their lag goes up or down by one per step."""

    def __init__(self, ess: Callable[[float], float], wait: Callable[[float], float], bound: int = 1) -> None:
        self.ess, self.wait = ess, wait
        self.bound, self.lag = bound, float(bound)
        self.changes: list[tuple[int, int]] = []
        self.steps = 0

    def run(self, control: LagControl, steps: int, noise: float = 0.0, seed: int = 0) -> list[int]:
        """The bounds that were chosen meanwhile."""
        random, before = np.random.default_rng(seed), len(self.changes)
        for _ in range(steps):
            self.steps += 1
            self.lag += np.clip(self.bound - self.lag, -1, 1)
            ess = self.ess(self.lag) + noise * random.normal()
            change = control.step(float(np.clip(ess, 0, 1)), self.wait(self.bound), self.bound)
            if change is not None:
                self.bound = change.bound
                self.changes.append((self.steps, self.bound))
        return [bound for _, bound in self.changes[before:]]


def falling(per_lag: float) -> Callable[[float], float]:
    return lambda lag: 1 - per_lag * lag


STARVED: Callable[[float], float] = lambda _: 0.5  # noqa: E731


def test_it_opens_one_by_one_while_the_learner_waits_and_the_groups_are_worth_it():
    """0.01 of the effective sample size for every step of lag: 0.92 is reached at 8, the largest bound."""
    world = World(falling(0.009), STARVED)
    assert world.run(LagControl(rules()), 400) == [2, 3, 4, 5, 6, 7, 8]
    steps = [step for step, _ in world.changes]
    assert steps[0] == 1 + 2 + 5, "the first step is learned from; groups from before are used up; five are averaged"
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert gaps == [bound + 1 + 5 for bound in range(2, 8)]


def test_it_stays_where_the_learner_does_not_wait():
    assert World(falling(0.001), lambda _: 0.05).run(LagControl(rules()), 400) == []
    halved = World(falling(0.001), lambda bound: 0.4 / bound)
    assert halved.run(LagControl(rules()), 400) == [2, 3, 4], "with 4 it waits for 10 %"


def test_it_tightens_where_groups_are_worth_less_than_the_target():
    """0.02 for every step: 0.9 is kept with 5, and 0.92 with 4, so that it is not opened again from there."""
    world = World(falling(0.02), STARVED, bound=8)
    assert world.run(LagControl(rules()), 400) == [7, 6, 5]


def test_a_bound_that_costs_too_much_is_tried_ever_more_seldom():
    """0.93 at 3 and 0.85 at 4: every bound is either too loose or too tight."""
    world = World(lambda lag: 0.93 if lag <= 3 else 0.85, STARVED, bound=2)
    world.run(LagControl(rules()), 4000)
    assert {bound for _, bound in world.changes} == {3, 4}
    tried = [step for step, bound in world.changes if bound == 4]
    gaps = np.diff(tried)
    assert (gaps >= [100 * 2 ** min(n, 4) for n in range(len(gaps))]).all()
    assert len(tried) <= 6


@settings(max_examples=40, deadline=None)
@given(
    least=st.integers(0, 4),
    span=st.integers(0, 6),
    per_lag=st.floats(0, 0.3),
    wait=st.floats(0, 1),
    noise=st.floats(0, 0.05),
    seed=st.integers(0, 99),
)
def test_it_never_leaves_its_bounds_and_moves_by_one(least, span, per_lag, wait, noise, seed):
    world = World(falling(per_lag), lambda _: wait, bound=least)
    bounds = [least, *world.run(LagControl(rules(min=least, max=least + span)), 600, noise, seed)]
    assert all(least <= bound <= least + span for bound in bounds)
    assert all(abs(b - a) == 1 for a, b in itertools.pairwise(bounds))


def test_without_noise_it_settles():
    for per_lag in np.linspace(0.001, 0.2, 40):
        world = World(falling(float(per_lag)), STARVED, bound=4)
        control = LagControl(rules(again=10**6))
        world.run(control, 600)
        assert world.run(control, 2000) == []
        # The largest bound that keeps the target, or one less where that lies within the margin; or the end.
        keeps = max(1, min(8, math.floor(0.1 / per_lag + 1e-9)))
        opens = max(1, min(8, math.floor(0.08 / per_lag - 1e-9)))
        assert opens <= world.bound <= keeps


def test_what_is_not_a_number_moves_nothing_and_is_not_averaged():
    control = LagControl(rules())
    for _ in range(100):
        assert control.step(math.nan, 0.9, 2) is None
        assert control.step(0.1, math.nan, 2) is None
    for _ in range(4):
        assert control.step(0.99, 0.9, 2) is None
    assert control.step(0.99, 0.9, 2).bound == 3


def test_a_bound_that_somebody_else_has_set_is_left_alone_for_a_while():
    control = LagControl(rules(hold=50))
    for _ in range(6):
        control.step(0.99, 0.5, 2)
    looks = [control.step(0.99, 0.5, 4) for _ in range(100)]
    first = next(number for number, change in enumerate(looks) if change is not None)
    assert first == 50 + 5 and looks[first].bound == 5


def test_a_bound_set_for_good_is_left_alone_for_good():
    control = LagControl(rules(hold=None))
    control.step(0.99, 0.5, 2)
    assert [control.step(0.99, 0.5, 4) for _ in range(3000)] == [None] * 3000


def test_steps_that_were_under_way_when_the_bound_changed_are_not_somebody_elses():
    control = LagControl(rules(hold=None))
    looks = [control.step(0.99, 0.5, 1) for _ in range(8)]
    assert looks[-1].bound == 2
    assert [control.step(0.99, 0.5, 1) for _ in range(9)] == [None] * 9
    looks = [control.step(0.99, 0.5, 2) for _ in range(5)]
    assert looks[-1].bound == 3


def test_a_change_that_was_refused_is_asked_for_again_after_a_while():
    control = LagControl(rules())
    changes = []
    for _ in range(30):
        change = control.step(0.99, 0.5, 1)
        if change is not None:
            changes.append(change.bound)
            control.refused()
    assert changes == [2, 2, 2, 2]


def test_the_reason_says_what_was_seen():
    control = LagControl(rules())
    change = [control.step(0.8, 0.02, 4) for _ in range(11)][-1]
    assert change.why == (
        "over 5 steps at max_lag 4 the effective sample size was 0.800, the target is 0.9, "
        "and the learner waited 2% of its time"
    )


# --- the section ----------------------------------------------------------------------------------


def test_a_bound_is_a_number_or_what_it_may_follow():
    assert (StalenessSection(max_lag=3).first_lag, StalenessSection(max_lag=3).largest_lag) == (3, 3)
    follows = StalenessSection.model_validate({"max_lag": {"min": 1, "max": 8}})
    assert (follows.first_lag, follows.largest_lag) == (1, 8)
    started = StalenessSection.model_validate({"max_lag": {"min": 1, "max": 8, "start": 4}})
    assert started.first_lag == 4
    assert StalenessSection.model_validate(started.model_dump(mode="json")) == started


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"min": 4, "max": 2}, "min is 4, more than max, which is 2"),
        ({"min": 1, "max": 8, "start": 9}, "start is 9, outside of 1 to 8"),
        ({"min": 1, "max": 8, "target_ess": 1.0}, "less than 1"),
        ({"min": 1, "max": 8, "target_ess": 0.99}, "would never be opened"),
        ({"min": 1}, "required"),
        ({"min": 1, "max": 8, "target": 0.9}, "not permitted"),
        (-1, "greater than or equal to 0"),
        ("two", "valid integer"),
    ],
)
def test_mistakes_are_told_of_the_form_that_was_meant(wrong, said):
    with pytest.raises(ValidationError, match=said) as caught:
        StalenessSection.model_validate({"max_lag": wrong})
    assert caught.value.error_count() == 1
