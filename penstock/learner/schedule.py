"""The learning rate as a pure function of how many updates were made."""

from __future__ import annotations

import math

from penstock.learner.config import ScheduleSection


def learning_rate(peak: float, schedule: ScheduleSection, update: int) -> float:
    """The rate for the update that follows `update` earlier ones: linear warm-up, then the fall, then its end."""
    if update < schedule.warmup_updates:
        return peak * (update + 1) / schedule.warmup_updates
    if schedule.kind == "constant" or schedule.decay_updates is None:
        return peak
    done = min(1.0, (update - schedule.warmup_updates) / schedule.decay_updates)
    left = 1 - done if schedule.kind == "linear" else (1 + math.cos(math.pi * done)) / 2
    return peak * (schedule.min_ratio + (1 - schedule.min_ratio) * left)
