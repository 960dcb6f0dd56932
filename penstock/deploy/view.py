"""What a person may know of a running run at one instant: the driver fills it, status and display read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from penstock.services.replay import LedgerCounts

Phase = Literal["starting", "evaluating", "training", "draining", "finished", "failed", "stopped"]
ENDED: tuple[Phase, ...] = ("finished", "failed", "stopped")
"""Phases after which nothing moves any more: a limit was reached, an error, or a person's wish."""


@dataclass(frozen=True)
class WorkerView:
    """One actor: a rollout worker, a scorer or a learner rank."""

    name: str
    role: Literal["rollout", "learner", "scorer", "store"]
    state: str
    """A word or two: starting, ready, swapping, waiting (lag), dead …"""
    pid: int | None = None
    node: str = ""
    version: str = ""
    """Weights in use, as LINEAGE.STEP."""
    in_flight: int = 0
    """Completions being generated."""
    tokens_per_second: float = 0.0
    restarts: int = 0
    tokens_in_flight: int = 0
    """Tokens that these completions have so far."""


@dataclass(frozen=True)
class Controls:
    """What people and guards have asked for and still holds."""

    paused_by: str = ""
    """Who has paused the run; empty while it is not paused."""
    gate_open: bool = True
    """False while the gate is closed by hand."""
    coefficients: Mapping[str, float] = field(default_factory=dict)
    """Every coefficient that may be turned, as the next step takes it; names as in `penstock.learner.dials`."""


@dataclass(frozen=True)
class RunView:
    """One instant of a run."""

    phase: Phase
    step: int
    """Train steps done."""
    steps_total: int | None
    """The limit; None when the run ends by another."""
    version: str
    """Newest published weights, as LINEAGE.STEP."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The newest value of every metric."""
    ledger: LedgerCounts | None = None
    workers: tuple[WorkerView, ...] = ()
    started: float = 0.0
    """Unix seconds at which this process began."""
    time_left: float | None = None
    """Estimated seconds to the end; None when unknown."""
    message: str = ""
    """What is being waited for or what went wrong."""
    name: str = ""
    run_dir: str = ""
    pid: int = 0
    """The driver's process."""
    at: float = 0.0
    """Unix seconds of this instant."""
    controls: Controls = Controls()
    page: str = ""
    """Address of the page that is served beside the run; empty when there is none."""
    scrape: tuple[str, ...] = ()
    """`host:port` of every node where Prometheus finds metrics under /metrics."""


class Display(Protocol):
    """Whoever shows a run to a person."""

    def update(self, view: RunView) -> None:
        """Called about once a second by the driver; returns at once."""
        ...
