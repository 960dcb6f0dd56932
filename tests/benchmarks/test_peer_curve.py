"""When a run reached its goal, and at what pace it trained."""

from __future__ import annotations

import pytest

from benchmarks.peer.curve import Curve

CURVE = Curve(5.0, [10.0, 20.0, 40.0, 50.0, 70.0], [100.0, 200.0, 400.0, 500.0, 900.0], [0.2, 0.9, 1.0, 0.8, 0.9], 3.0)


def test_a_goal_is_reached_when_the_mean_of_three_steps_has_it():
    assert CURVE.reached(0.7) == 40.0  # (.2 + .9 + 1) / 3
    assert CURVE.reached(0.9) == 50.0  # (.9 + 1 + .8) / 3
    assert CURVE.reached(0.95) is None


def test_the_pace_leaves_the_first_steps_out():
    assert CURVE.pace(2) == (900 - 200) / (70 - 20)
    with pytest.raises(ValueError, match="5 steps are too few"):
        CURVE.pace(5)
