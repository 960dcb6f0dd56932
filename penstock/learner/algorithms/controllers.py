"""How an adaptive coefficient moves after a train step. Pure functions of numbers."""

from __future__ import annotations


def fixed(coefficient: float, measured: float) -> float:  # noqa: ARG001  (one signature for all)
    """As it is."""
    return coefficient


def doubling(coefficient: float, measured: float, target: float) -> float:
    """β·2 when the KL exceeds 1.5·target, β/2 when it is below target/1.5, else β (PPO, arXiv 1707.06347, §4)."""
    if measured > 1.5 * target:
        return coefficient * 2
    if measured < target / 1.5:
        return coefficient / 2
    return coefficient


def proportional(coefficient: float, measured: float, target: float, gain: float) -> float:
    """β·(1 + gain·clip(KL/target − 1, ±0.2)) (Ziegler et al., arXiv 1909.08593, §2.2, with gain = 0.1)."""
    error = min(0.2, max(-0.2, measured / target - 1))
    return coefficient * (1 + gain * error)
