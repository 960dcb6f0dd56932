"""Goals, phases and the numbers of summary.json, against small tables worked out by hand."""

from __future__ import annotations

import time

import pytest

from penstock.deploy.config import GoalSection
from penstock.deploy.summary import Phases, first_and_last, judge, ledger_summary, over_steps
from penstock.services.replay import STATES, LedgerCounts
from penstock.services.versions import FIRST

ROWS = [
    {"step": 0, "eval/accuracy": 0.3},
    {"step": 1, "off_policy/mean": 0.5, "off_policy/max": 1.0},
    {"step": 2, "off_policy/mean": 1.5, "off_policy/max": 2.0, "eval/accuracy": 0.9},
]


@pytest.mark.parametrize(
    ("of", "bound", "value", "reached"),
    [
        ("final", {"at_least": 0.9}, 0.9, True),
        ("final", {"at_least": 0.91}, 0.9, False),
        ("initial", {"at_most": 0.5}, 0.3, True),
        ("initial", {"at_most": 0.2}, 0.3, False),
        ("gain", {"at_least": 0.5, "at_most": 0.7}, 0.6, True),
    ],
)
def test_a_goal_is_held_against_the_first_the_last_or_the_gain(of, bound, value, reached):
    (report,) = judge([GoalSection(metric="eval/accuracy", of=of, **bound)], ROWS)
    assert report.value == pytest.approx(value)
    assert report.reached is reached


def test_a_metric_that_was_never_recorded_misses_its_goal():
    (report,) = judge([GoalSection(metric="eval/other", at_most=1.0)], ROWS)
    assert report.value is None
    assert not report.reached


def test_evaluations_are_reported_before_and_after():
    assert first_and_last(ROWS, "eval/") == {"eval/accuracy": {"before": 0.3, "after": 0.9}}


def test_lag_is_averaged_over_steps_that_have_one_and_its_peak_kept():
    assert over_steps(ROWS, "off_policy/mean", "off_policy/max") == {"mean": 1.0, "max": 2.0}
    assert over_steps([], "off_policy/mean", "off_policy/max") == {"mean": None, "max": None}


def test_a_phase_that_is_entered_again_adds_up():
    phases = Phases()
    for _ in range(2):
        with phases.phase("wait"):
            time.sleep(0.02)
    assert 0.04 <= phases.seconds["wait"] < 1.0


def test_the_ledger_is_balanced_only_when_every_prompt_has_a_state():
    states = dict.fromkeys(STATES, 0) | {"committed": 3, "dropped": 2}
    counts = LedgerCounts(5, states, {"stale": 1, "no_signal": 1}, 0, FIRST)
    assert ledger_summary(counts)["balanced"]
    assert not ledger_summary(LedgerCounts(6, states, {"stale": 2}, 0, FIRST))["balanced"]
