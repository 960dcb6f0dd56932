"""How an adaptive coefficient moves after a train step. Pure functions of numbers.

Every rule stays within bounds: 0 would never grow again, and infinity never shrink. A measurement that is no number
moves nothing.
"""

from __future__ import annotations

import math


def fixed(coefficient: float, measured: float) -> float:  # noqa: ARG001  (one signature for all)
    """As it is."""
    return coefficient


def doubling(
    coefficient: float, measured: float, target: float, min_coefficient: float, max_coefficient: float
) -> float:
    """β·2 when the KL exceeds 1.5·target, β/2 when it is below target/1.5, else β (PPO, arXiv 1707.06347, §4)."""
    factor = 2.0 if measured > 1.5 * target else 0.5 if measured < target / 1.5 else 1.0
    return _moved(coefficient, factor, min_coefficient, max_coefficient)


def proportional(
    coefficient: float, measured: float, target: float, gain: float, min_coefficient: float, max_coefficient: float
) -> float:
    """β·(1 + gain·clip(KL/target − 1, ±0.2)) (Ziegler et al., arXiv 1909.08593, §2.2, with gain = 0.1)."""
    if math.isnan(measured):
        return coefficient
    error = min(0.2, max(-0.2, measured / target - 1))
    return _moved(coefficient, 1 + gain * error, min_coefficient, max_coefficient)


def _moved(coefficient: float, factor: float, lowest: float, highest: float) -> float:
    """A coefficient that begins beyond a bound may come back, and is not thrown back."""
    moved = coefficient * factor
    if factor > 1:
        return max(coefficient, min(moved, highest))
    return min(coefficient, max(moved, lowest))
