"""What the figures are worked out with, against numbers worked out by hand."""

from __future__ import annotations

import random

import psutil
import pytest

from benchmarks import measuring, overhead, soak, table


def test_sides_take_turns_and_every_second_round_begins_with_the_last():
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = measuring.in_turns(3, 1, a=lambda: side("a"), b=lambda: side("b"))
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert found == {"a": [4, 5, 8], "b": [3, 6, 7]}


def test_a_spread_is_median_and_quartiles():
    assert measuring.spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "quartiles": [2.0, 4.0], "times": 5}
    assert measuring.spread([2.0])["quartiles"] == [2.0, 2.0]
    assert measuring.ratios([2.0, 9.0, 8.0], [1.0, 3.0, 8.0])["median"] == 2.0


def test_nobody_works_where_no_interval_covers_the_time():
    worked = overhead.union([(5, 6), (1, 2), (1.5, 3), (3, 4)])
    assert worked == [(1, 4), (5, 6)]
    assert overhead.gaps(worked, 0.5, 7) == [(0.5, 1), (4, 5), (6, 7)]
    assert overhead.gaps(worked, 2, 5.5) == [(4, 5)]
    assert overhead.gaps([], 1, 3) == [(1, 3)]


@pytest.mark.parametrize(("per_second", "flat"), [(0.0, True), (0.2, False)])
def test_what_grows_is_told_from_noise(per_second: float, flat: bool):
    dice, watch = random.Random(0), soak.Watch({"store": psutil.Process()})
    watch.times = [float(second) for second in range(600)]
    watch.sizes = {"store": [100 + per_second * t + dice.gauss(0, 3) for t in watch.times]}
    found = watch.report()["store"]
    assert found["mib_per_hour"] == pytest.approx(3600 * per_second, abs=found["twice_the_error"] + 1)
    assert found["flat"] is flat


def test_every_kept_line_has_its_rows_and_every_figure_has_a_row():
    lines = table.kept()
    for name in table.FIGURES:
        for row in table.rows(name, lines.get(name, [])):
            assert len(row) == 6 and row[0]


def test_the_page_of_figures_is_what_the_kept_lines_say():
    assert table.PAGE.read_text() == table.page_text(), "write the page anew: make figures"
