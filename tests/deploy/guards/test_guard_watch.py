"""When a guard fires: against a plain loop over the same measurements, and case by case."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.deploy.guards.config import GuardSection
from penstock.deploy.guards.watch import Watch


def watch(when: str = "a/b > 0", fired: int = 0, rest: int = 0, **keys) -> Watch:
    return Watch("w", GuardSection.model_validate({"when": when, "do": "warn", "cooldown": 0, **keys}), fired, rest)


def fires(watched: Watch, values) -> list[int]:
    """The measurements, from 1, at which it fires."""
    return [step for step, value in enumerate(values, 1) if watched.see(value, step) is not None]


def test_it_fires_when_the_condition_has_held_so_often_in_a_row():
    assert fires(watch(**{"for": 3}), [1, 1, 0, 1, 1, 1, 1, 1, 1, 1]) == [6, 9]


def test_after_firing_it_rests_and_what_held_meanwhile_does_not_count():
    assert fires(watch(cooldown=2, **{"for": 2}), [1] * 10) == [2, 6, 10]


def test_a_step_that_did_not_measure_it_changes_nothing_and_nan_breaks_the_row():
    assert fires(watch(**{"for": 2}), [1, None, 1]) == [3]
    assert fires(watch(**{"for": 2}), [1, math.nan, 1, 1]) == [4]


@pytest.mark.parametrize(
    ("exhausted", "what"),
    [
        ("warn", ["fired", "fired", "exhausted", None, None, None]),
        ("pause", ["fired", "fired", "exhausted", None, None, "exhausted"]),
    ],
)
def test_it_fires_as_often_as_it_may_and_then_says_so_once_or_asks_whenever_it_holds_anew(exhausted, what):
    watched = watch(times=2, exhausted=exhausted)
    seen = [watched.see(value, step) for step, value in enumerate([1, 1, 1, 1, 0, 1], 1)]
    assert [firing.what if firing else None for firing in seen] == what
    assert watched.fired == 2


def test_it_is_well_when_the_condition_has_failed_to_hold_as_often_in_a_row_as_it_must_hold_even_while_it_rests():
    watched = watch(cooldown=4, **{"for": 2})
    well = []
    for step, value in enumerate([1, 1, 0, 1, 0, math.nan, 0, None, 0, 1], 1):
        watched.see(value, step)
        well.append(watched.well)
    assert well == [False] * 8 + [True, False]


def test_how_often_it_has_fired_before_the_run_was_resumed_counts():
    assert fires(watch(times=3, fired=2), [1, 1, 1])[:1] == [1]
    assert watch(times=3, fired=3).see(1, 1).what == "exhausted"
    assert fires(watch(rest=2), [1, 1, 1]) == [3]


def test_a_firing_knows_the_last_measurement_before_the_condition_held():
    watched = watch(**{"for": 3})
    firings = [watched.see(value, step) for step, value in [(10, 0), (20, 0), (30, 1), (40, 1), (50, 1)]]
    assert firings[:4] == [None] * 4
    assert (firings[4].since, firings[4].step, firings[4].value) == (20, 50, 1)


def test_a_run_that_goes_on_from_another_step_begins_a_new_row():
    watched = watch(**{"for": 2})
    watched.see(1, 9)
    watched.begin_again(4)
    assert watched.see(1, 5) is None
    assert watched.see(1, 6).since == 4


@given(
    values=st.lists(st.sampled_from([1.0, 0.0, None, math.nan]), max_size=60),
    needed=st.integers(1, 4),
    cooldown=st.integers(0, 4),
    times=st.one_of(st.none(), st.integers(1, 4)),
)
def test_it_fires_where_a_plain_loop_says(values, needed, cooldown, times):
    watched = watch(cooldown=cooldown, times=times, **{"for": needed})
    found = [i for i, value in enumerate(values) if (firing := watched.see(value, i)) and firing.what == "fired"]
    expected, row, resting = [], 0, 0
    for i, value in enumerate(values):
        if value is None:
            continue
        if resting:
            resting, row = resting - 1, 0
            continue
        row = row + 1 if value == 1.0 else 0
        if row >= needed and (times is None or len(expected) < times):
            expected.append(i)
            row, resting = 0, cooldown
    assert found == expected
