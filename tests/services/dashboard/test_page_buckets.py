"""Long series in few numbers, against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from penstock.services.dashboard.buckets import floor, reduce, width_for


@pytest.mark.parametrize(
    ("first", "last", "most", "width"),
    [(1, 300, 300, 1), (1, 301, 300, 2), (0, 0, 10, 1), (1, 100_000, 400, 256), (63, 64, 1, 128)],
)
def test_the_width_is_the_smallest_power_of_two_that_is_enough(first: int, last: int, most: int, width: int) -> None:
    assert width_for(first, last, most) == width
    assert last // width - first // width + 1 <= most
    assert width == 1 or last // (width // 2) - first // (width // 2) + 1 > most


def by_loop(steps: list[int], values: list[float], width: int) -> list[tuple[int, int, float, float, float]]:
    cells: dict[int, list[tuple[int, float]]] = {}
    for step, value in zip(steps, values, strict=True):
        cells.setdefault(floor(step, width), []).append((step, value))
    found = []
    for _, cell in sorted(cells.items()):
        known = [value for _, value in cell if math.isfinite(value)]
        numbers = (sum(known) / len(known), min(known), max(known)) if known else (math.nan,) * 3
        found.append((cell[0][0], cell[-1][0], *numbers))
    return found


def test_buckets_are_what_a_plain_loop_finds() -> None:
    random = np.random.default_rng(1)
    steps = np.sort(random.choice(500, size=200, replace=False)).astype(np.int64)
    values = random.normal(size=(3, 200)).astype(np.float32)
    values[random.random((3, 200)) < 0.4] = np.nan
    values[1, :60] = np.nan
    for width in (1, 2, 16, 512):
        found = reduce(steps, values, width)
        for row in range(3):
            told = list(zip(found.first, found.last, found.mean[row], found.low[row], found.high[row], strict=True))
            wanted = by_loop(steps.tolist(), values[row].tolist(), width)
            np.testing.assert_allclose(np.array(told, float), np.array(wanted, float), rtol=1e-6)


def test_no_steps_are_no_buckets() -> None:
    found = reduce(np.empty(0, np.int64), np.empty((2, 0), np.float32), 4)
    assert found.first.shape == (0,)
    assert found.mean.shape == (2, 0)
