"""Do sampler and learner compute the same? A warning at the start, after every weight swap and at every step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from penstock.deploy.fleet import Member
from penstock.deploy.journal import Journal
from penstock.services.versions import Version

USUAL = {"float32": 1e-4, "bfloat16": 0.05}
"""Nats per token, by the engine's number format, from which on a difference is more than rounding."""


class Mismatch:
    """Compares what is measured without lag, where both have the same weights, with a bound."""

    def __init__(self, journal: Journal, limit: float | None, dtype: str) -> None:
        """`limit`: nats per token; by default what is usual for the engine's `dtype`."""
        self._journal, self._limit = journal, limit or USUAL[dtype]
        self._said: set[tuple[str, int]] = set()

    def swapped(self, workers: Iterable[Member]) -> None:
        """Look at the probes of all swaps so far, the first of which comes before any token is sampled. A worker is
        warned of once in each of its lives. What is far beyond, the swap itself refuses."""
        for worker in workers:
            gap = float(worker.stats.get("largest_gap", 0.0))
            life = (worker.name, worker.restarts)
            if gap > self._limit and life not in self._said:
                self._said.add(life)
                version = str(worker.stats.get("largest_gap_at", ""))
                self._warn(f"{worker.name} and the learner differ by {gap:.2g} nats on the probe of version {version}")

    def stepped(self, version: Version, metrics: Mapping[str, float]) -> None:
        """Look at the trained tokens that were sampled without lag."""
        gap = metrics.get("mismatch/max", 0.0)
        if gap > self._limit:
            what = f"sampler and learner differ by {gap:.2g} nats on tokens of version {version} without lag"
            self._warn(what, step=version.step)

    def _warn(self, what: str, **facts: int) -> None:
        self._journal.warn(f"{what} (recording.mismatch_warning is {self._limit:g})", **facts)
