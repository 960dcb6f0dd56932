"""Lets a run's bound on the lag follow what it costs: hands steps to the controller, and asks for what it says."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping

from penstock.deploy.journal import Journal
from penstock.learner.config import AdaptiveLag
from penstock.learner.lag_control import LagControl
from penstock.services.control import Answer, Asked, SetMaxLag

WHO = "max_lag control"


class LagSteering:
    """Acts through `ask`, which is `Steering.carry_out`, as a person would."""

    def __init__(self, rules: AdaptiveLag, ask: Callable[[Asked], Answer], journal: Journal) -> None:
        self._control, self._ask, self._journal = LagControl(rules), ask, journal

    def stepped(self, metrics: Mapping[str, float]) -> None:
        """After a train step, with what it has measured."""
        step_seconds, waited = metrics.get("time/step", 0.0), metrics.get("time/wait", math.nan)
        share = waited / step_seconds if step_seconds > 0 else math.nan
        change = self._control.step(metrics.get("rollout_corr/ess", math.nan), share, int(metrics["off_policy/bound"]))
        if change is None:
            return
        self._journal.event("max_lag", change.why, bound=change.bound)
        asked = Asked(f"max-lag-{uuid.uuid4().hex}", WHO, time.time(), SetMaxLag(change.bound))
        if not self._ask(asked).done:
            self._control.refused()
