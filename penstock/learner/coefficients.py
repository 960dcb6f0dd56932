"""Adaptive coefficients on rank 0: where they are now, and how a step moves them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from penstock.learner.algorithms.bound import Adaptive


class Coefficients:
    """Starts where `resumed` left off; what it holds of other coefficients than the algorithm's is of no use here."""

    def __init__(self, adaptive: Mapping[str, Adaptive], resumed: Mapping[str, float]) -> None:
        self._adaptive = adaptive
        self.values = {name: resumed.get(name, each.start) for name, each in adaptive.items()}
        """By `bound.KL_COEFFICIENT` and `bound.OBJECTIVE_COEFFICIENT`; what the next step trains with."""

    def move(self, metrics: Mapping[str, float]) -> None:
        """After a step that has changed the policy. A coefficient stays where it is when the step could not measure
        what it follows."""
        for name, each in self._adaptive.items():
            measured = metrics.get(each.metric, math.nan)
            if math.isfinite(measured):
                self.values[name] = each.move(self.values[name], measured)

    def metrics(self) -> dict[str, float]:
        """`kl.coefficient` is reported as `actor/kl_coefficient`."""
        return {f"actor/{name.replace('.', '_')}": value for name, value in self.values.items()}
