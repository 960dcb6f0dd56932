"""Evaluations beside training: one at a time, on one worker, which goes on generating meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from penstock.deploy import evaluations
from penstock.deploy.journal import Journal
from penstock.deploy.parts import Parts
from penstock.services.contracts import PenstockError
from penstock.services.versions import Version


class Evaluating:
    """When one is due, and what has come of it. Nothing here waits."""

    def __init__(
        self, parts: Parts, every: int, journal: Journal, record: Callable[[Version, dict[str, float]], object]
    ) -> None:
        """`every` so many steps, 0 for never; `record` takes what was measured."""
        self._parts, self._every, self._journal, self._record = parts, every, journal, record
        self._pending: evaluations.Pending | None = None
        self._last = 0
        """The step of the newest that was begun."""

    @property
    def possible(self) -> bool:
        """A worker is generating."""
        return any(worker.state == "running" for worker in self._parts.rollout.staying)

    def stepped(self, version: Version) -> None:
        """Begin when it is time; skipped while the one before is still going on."""
        job = self._parts.evaluation
        if not self._every or job is None or self._pending is not None:
            return
        if version.step // self._every > self._last // self._every and self.possible:
            self._last = version.step
            self._pending = evaluations.Pending(job, lambda: self._parts.workers[::-1], most=1)

    def went_back(self, step: int) -> None:
        """What came after `step` is to be done again."""
        self._last = min(self._last, step)

    def collect(self) -> None:
        """Record what is there; one that is late, or failed again and again, is given up with a warning."""
        pending = self._pending
        try:
            if pending is None or not (pending.collect() or pending.overdue):
                return
            self._pending = None
            if pending.overdue:
                late = f"waited {pending.overdue:.0f} s (evaluation.deadline) for an evaluation by {pending.missing}"
                self._journal.warn(f"{late}; it is given up")
                return
            self._record(*pending.result())
        except PenstockError as error:
            self._pending = None
            self._journal.warn(f"an evaluation was lost: {error}")

    # --- the one before training --------------------------------------------------------------------

    def keep(self, version: Version) -> None:
        """The first weights must still be there when the last worker joins to evaluate them."""
        if self._parts.evaluation is not None:
            seconds = self._parts.evaluation.deadline
            self._parts.host.surely(lambda store: store.pin(version, "evaluation", seconds))

    def release(self, version: Version) -> None:
        """The evaluation of `version` is over."""
        self._parts.host.surely(lambda store: store.unpin(version, "evaluation"))
