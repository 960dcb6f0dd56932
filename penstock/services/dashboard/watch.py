"""Follows the files of a run directory in a thread of its own, so that a question is answered from memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

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
_COURTESY = 3.0
"""Seconds for which a large file is left alone, unless a page has been shown the sample before: drawing comes first."""


class Watch:
    """What is in the files by now. Enter it to begin."""

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory
        self._whole = History(directory.metrics, self._pass_over)
        self.history = self._whole
        """All steps; some of them while a large file is being read."""
        self.chronicle = Chronicle(directory.events, self._step_at)
        self.activity = Activity(directory.activity, directory.activity_before)
        self._damaged = self._unreadable = ""
        self._passed_over = 0
        self._stop, self._looked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def looked(self) -> None:
        """A page has been told what there is."""
        self._looked.set()

    def _step_at(self, time: float) -> int:
        return self.history.step_at(time)

    @property
    def read_share(self) -> float:
        """How much of the metrics has been read, 1 for all."""
        if self.history is self._whole:
            return 1.0
        return self._whole.read_share

    def __enter__(self) -> Watch:
        path = self._directory.metrics
        if path.exists() and path.stat().st_size > _LARGE:
            self.history = sampled(path, _SAMPLED)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._looked.set()
        self._thread.join()

    @property
    def damage(self) -> str:
        """What is wrong with the run's files; empty when nothing is."""
        return self._unreadable or self._damaged

    def _pass_over(self, error: MetricError) -> None:
        """A line of metrics that is none: the others are shown all the same."""
        self._passed_over += 1
        lines = "this line is" if self._passed_over == 1 else f"{self._passed_over} lines are"
        self._damaged = f"{error} ({lines} passed over)"

    def _follow(self) -> None:
        """A thread that ended in silence would leave a page that looks alive and stands still."""
        try:
            self._read((self.chronicle.follow, self.activity.follow))
            if self.history is not self._whole:
                self._looked.wait(_COURTESY)
            while not self._stop.is_set():
                if not self._read((self.chronicle.follow, self.activity.follow, self._read_metrics)):
                    self._stop.wait(LOOK)
        except BaseException as error:
            self._unreadable = (
                f"the page has stopped reading the run's files, {type(error).__name__}: {error}; start it again"
            )
            raise

    def _read(self, steps: Sequence[Callable[[], bool]]) -> bool:
        """Whether there was anything new. What cannot be read now, as on a file system that is away, is tried again."""
        more, wrong = False, ""
        for step in steps:
            try:
                more = step() or more
            except OSError as error:
                wrong = f"the run's files cannot be read: {error}"
        self._unreadable = wrong
        return more

    def _read_metrics(self) -> bool:
        more = self._whole.follow()
        if not more and self.history is not self._whole:
            self._whole.replace(self.history)
            self.history = self._whole
        return more
