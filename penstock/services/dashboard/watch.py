"""Follows the files of a run directory in a thread of its own, so that a question is answered from memory."""

from __future__ import annotations

import threading
from collections.abc import Callable

from penstock.services.dashboard.activity import Activity
from penstock.services.dashboard.chronicle import Chronicle
from penstock.services.dashboard.history import History, sampled
from penstock.services.metrics import MetricError
from penstock.services.rundir import RunDir

LOOK = 0.25
"""Seconds between looks at the files while nothing is new: a look is three calls to the system."""
_LARGE = 16 * 1024 * 1024
"""Metrics that take noticeable time to read; a page is shown some evenly spaced lines of them at first."""
_SAMPLED = 600


class Watch:
    """What is in the files by now. Enter it to begin."""

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory
        self._whole = History(directory.metrics)
        self.history = self._whole
        """All steps; some of them while a large file is being read."""
        self.chronicle = Chronicle(directory.events, self._step_at)
        self.activity = Activity(directory.activity, directory.activity_before)
        self.damage = ""
        """What is wrong with the metrics from some line on; empty when nothing is."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def _step_at(self, time: float) -> int:
        return self.history.step_at(time)

    @property
    def read_share(self) -> float:
        """How much of the metrics has been read, 1 for all."""
        return self._whole.read_share if self.history is not self._whole else 1.0

    def __enter__(self) -> Watch:
        path = self._directory.metrics
        if path.exists() and path.stat().st_size > _LARGE:
            self.history = sampled(path, _SAMPLED)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        steps: tuple[Callable[[], bool], ...] = (self.chronicle.follow, self.activity.follow, self._read_metrics)
        while not self._stop.is_set():
            found = [step() for step in steps]
            if not any(found):
                self._stop.wait(LOOK)

    def _read_metrics(self) -> bool:
        if self.damage:
            return False
        try:
            more = self._whole.follow()
        except MetricError as error:
            self.damage = str(error)
            return False
        if not more and self.history is not self._whole:
            self._whole.replace(self.history)
            self.history = self._whole
        return more
