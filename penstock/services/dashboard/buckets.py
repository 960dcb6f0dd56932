"""Long series in few numbers: mean, smallest and largest value of every bucket of steps.

Buckets begin at multiples of their width, so that a series that grows changes only its last bucket, and a page that has
the others needs to be sent nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Buckets:
    """`values[series, bucket]`; NaN where a bucket has no value."""

    first: NDArray[np.int64]
    """The smallest step of every bucket that has any, [bucket]."""
    last: NDArray[np.int64]
    """Its largest, [bucket]."""
    mean: NDArray[np.float64]
    low: NDArray[np.float32]
    high: NDArray[np.float32]


def width_for(first: int, last: int, most: int) -> int:
    """The smallest power of two of which at most `most` buckets cover the steps `first` to `last`."""
    width = 1
    while last // width - first // width + 1 > most:
        width *= 2
    return width


def floor(step: int, width: int) -> int:
    """Where the bucket of `step` begins."""
    return math.floor(step / width) * width


def reduce(steps: NDArray[np.int64], values: NDArray[np.float32], width: int) -> Buckets:
    """`values`, [series, row], of rising `steps`, [row], over buckets of `width` steps."""
    if len(steps) == 0:
        nothing = np.empty((len(values), 0), np.float32)
        return Buckets(steps, steps, nothing.astype(np.float64), nothing, nothing)
    starts = np.flatnonzero(np.diff(steps // width, prepend=steps[0] // width - 1))
    ends = np.append(starts[1:], len(steps)) - 1
    if width == 1:
        return Buckets(steps, steps, values.astype(np.float64), values, values)
    known = np.isfinite(values)
    total = np.add.reduceat(np.where(known, values, 0.0), starts, axis=1, dtype=np.float64)
    count = np.add.reduceat(known, starts, axis=1, dtype=np.int64)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    low, high = np.fmin.reduceat(values, starts, axis=1), np.fmax.reduceat(values, starts, axis=1)
    return Buckets(steps[starts], steps[ends], mean, low, high)
