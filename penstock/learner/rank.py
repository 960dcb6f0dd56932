"""One rank of a training stage, seen from outside: run it in a thread, ask it from others."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from penstock.services.contracts import DeadlinePassed, PenstockError
from penstock.services.lanes import Lane, Span


class RankLost(PenstockError):
    """Another rank of the learner is gone; the text says which one was needed and for what."""


class RankLate(RankLost, DeadlinePassed):
    """Another rank of the learner did not come in time."""


@dataclass(frozen=True)
class Health:
    """What a rank is doing, for the supervisor."""

    rank: int
    state: str
    """starting, running, ended or failed."""
    doing: str
    silent: float
    """Seconds since the last sign of life. There is one at every micro-batch and every tensor gathered, and every
    second of a wait; only loading a model, the update itself, or writing a checkpoint, may take minutes."""
    version: str
    error: str = ""


class Rank(ABC):
    """The reports, requests and health of one rank; a stage fills in what it runs."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._lock = threading.Lock()
        self._reports: list[dict[str, Any]] = []
        self._stop_why = ""
        self._lane = Lane()
        self._state, self._doing, self._beat_at, self._error = "starting", "starting", time.monotonic(), ""

    def run(self) -> str:
        """Meet the others, load the model, train until there is a reason to stop; returns the reason.

        A follower returns an empty text when rank 0 has ended. Raises what ended the stage otherwise; the other
        ranks are then waiting for this one and have to be ended from outside.
        """
        try:
            why = self._run()
        except BaseException as error:
            self._error = f"{type(error).__name__}: {error}"
            self._state = "failed"
            raise
        self._state = "ended"
        return why

    @abstractmethod
    def _run(self) -> str: ...

    @property
    def version(self) -> str:
        """The version this rank is at; empty where there is none."""
        return ""

    def reports(self) -> list[dict[str, Any]]:
        """Everything reported since the last call, oldest first; plain values."""
        with self._lock:
            reports, self._reports = self._reports, []
        return reports

    def spans(self) -> list[Span]:
        """What it did since the last call."""
        return self._lane.take()

    def request_stop(self, why: str) -> None:
        """End after this step, with everything written down."""
        self._stop_why = self._stop_why or why

    def health(self) -> Health:
        """What this rank is doing."""
        silent = time.monotonic() - self._beat_at
        return Health(self._rank, self._state, self._doing, silent, self.version, self._error)

    # --- for the stage ------------------------------------------------------------------------------

    def _running(self) -> None:
        self._state = "running"

    def _beat(self, doing: str) -> None:
        self._doing, self._beat_at = doing, time.monotonic()
        self._lane.enter(doing)

    def _keep(self, report: dict[str, Any]) -> None:
        with self._lock:
            self._reports.append(report)
