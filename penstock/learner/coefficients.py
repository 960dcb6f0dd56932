"""The coefficients that a run trains with on rank 0: those that adapt, and those that somebody has turned."""

from __future__ import annotations

import math
from collections.abc import Mapping

from penstock.learner.algorithms.bound import Adaptive
from penstock.learner.dials import KL, MAX_LAG, OBJECTIVE

_METRIC = {KL: "actor/kl_coefficient", OBJECTIVE: "actor/objective_coefficient"}


class Coefficients:
    """Where every coefficient is now. Those that neither adapt nor were turned are the run file's and not in here."""

    def __init__(
        self,
        adaptive: Mapping[str, Adaptive],
        resumed: Mapping[str, float],
        start: Mapping[str, float] | None = None,
        began: Mapping[str, float] | None = None,
    ) -> None:
        """Starts where `resumed`, a checkpoint's, left off.

        `start` has the run file's value of every coefficient that may be turned (`dials.Dials.start`), and `began` what
        the run file had when the checkpoint was written: where the two differ, whoever resumed the run has said what he
        wants, and that counts. What `resumed` holds of other coefficients is of no use here."""
        self._adaptive = adaptive
        self.start = dict(start or {})
        self.values = {name: each.start for name, each in adaptive.items()}
        """By name as in `dials`; what the next step trains with."""
        self._by_hand: set[str] = set()
        for name, value in resumed.items():
            # Without `began` it is a checkpoint of a time in which nothing could be turned.
            wanted = began.get(name) == self.start.get(name) if began else name in adaptive
            if wanted and (name in adaptive or name in self.start):
                self.values[name] = value

    def turn(self, changes: Mapping[str, float]) -> None:
        """From the next step on. One that adapts goes on from there."""
        self.values |= changes
        self._by_hand |= set(changes)

    def fall_back(self, saved: Mapping[str, float]) -> None:
        """To what a checkpoint had of those that adapt; what was turned by hand was turned on purpose and stays."""
        self.values |= {name: saved[name] for name in self._adaptive if name in saved and name not in self._by_hand}

    def at(self, name: str, otherwise: float) -> float:
        """Where it is now; `otherwise` where nobody has moved it."""
        return self.values.get(name, otherwise)

    @property
    def all(self) -> dict[str, float]:
        """Every coefficient that may be turned or adapts, as it is now."""
        return self.start | self.values

    def move(self, metrics: Mapping[str, float]) -> None:
        """After a step that has changed the policy. A coefficient stays where it is when the step could not measure
        what it follows."""
        for name, each in self._adaptive.items():
            measured = metrics.get(each.metric, math.nan)
            if math.isfinite(measured):
                self.values[name] = each.move(self.values[name], measured)

    def metrics(self) -> dict[str, float]:
        """Those that adapt or were turned; the bound on the lag has a metric of its own."""
        return {
            _METRIC.get(name, f"coefficient/{name}"): value for name, value in self.values.items() if name != MAX_LAG
        }
