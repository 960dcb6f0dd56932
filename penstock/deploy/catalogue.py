"""Every metric that a run can record, from the roles that record them."""

from __future__ import annotations

from functools import cache

from penstock.reward.metrics import METRICS as REWARD
from penstock.services.metrics import Metric, merge


@cache
def catalogue() -> dict[str, Metric]:
    """Name to meaning. Raises MetricError when two roles claim one name."""
    return merge({"reward": REWARD})
