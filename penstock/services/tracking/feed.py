"""A tracker in a thread of its own, behind a bounded queue: whatever it does, the run does not wait for it."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from penstock.services.versions import Version

MOST_WAITING = 1000
"""Things to tell that may wait; at one step a second, a quarter of an hour."""
MOST_FAILURES = 3
"""Calls that fail one after the other before a tracker is given up."""
_END = object()


class Tracker(Protocol):
    """Who is told of a run. Called from one thread only, in the order of what happened; any call may raise."""

    name: str

    def open(self) -> None:
        """Get ready; called once, first."""
        ...

    def begin(self, version: Version) -> None:
        """The learner goes on at `version`: what was told beyond its step is a lost future."""
        ...

    def step(self, version: Version, metrics: Mapping[str, float], at: float) -> None:
        """Values of the step that ended in `version`, at unix time `at`; an evaluation's come later, by themselves."""
        ...

    def event(self, version: Version, kind: str, message: str, at: float) -> None:
        """Something happened between the steps, while the run was at `version`."""
        ...

    def close(self, outcome: str) -> None:
        """The run is over: finished, failed or stopped. Called once, last, also when `open` failed."""
        ...

    def abandon(self) -> None:
        """Leave nothing running: nobody waits any longer. Called from another thread, while a call may go on."""
        ...


class Feed:
    """Passes on to one tracker what it is told, later and elsewhere. No method waits but `wait`."""

    def __init__(self, tracker: Tracker, most_waiting: int = MOST_WAITING) -> None:
        self.name = tracker.name
        self._tracker = tracker
        self._waiting: queue.Queue[Any] = queue.Queue(most_waiting)
        self._troubles: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failures = 0
        self._given_up = self._said_full = self._said_failed = False
        self._thread = threading.Thread(target=self._run, name=f"tracker {self.name}", daemon=True)
        self._thread.start()

    def begin(self, version: Version) -> None:
        self._put(lambda: self._tracker.begin(version))

    def step(self, version: Version, metrics: Mapping[str, float], at: float) -> None:
        values = dict(metrics)
        self._put(lambda: self._tracker.step(version, values, at))

    def event(self, version: Version, kind: str, message: str, at: float) -> None:
        self._put(lambda: self._tracker.event(version, kind, message, at))

    def troubles(self) -> list[str]:
        """What a person should know, since the last call: every kind of trouble is told once."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._troubles.get_nowait())
        return found

    def end(self, outcome: str) -> None:
        """Nothing more will be told; the tracker is closed when it has been told what is waiting."""
        try:
            self._waiting.put_nowait((_END, outcome))
        except queue.Full:
            with contextlib.suppress(queue.Empty):
                self._waiting.get_nowait()  # lost to a tracker that has been too slow all the time
            self._waiting.put_nowait((_END, outcome))

    def wait(self, deadline: float) -> None:
        """Until the tracker is closed, for `deadline` seconds at most; what it has not done by then is lost."""
        self._thread.join(deadline)
        if self._thread.is_alive():
            self._given_up = True
            self._tracker.abandon()
            self._tell(f"{self.name} did not finish in time; what it had not written is lost to it")

    # --- the thread ---------------------------------------------------------------------------------

    def _put(self, what: Callable[[], None]) -> None:
        if self._given_up:
            return
        try:
            self._waiting.put_nowait((what, ""))
        except queue.Full:
            if not self._said_full:
                self._said_full = True
                self._tell(f"{self.name} is too slow or hangs; what it is not told from now on is lost to it")

    def _run(self) -> None:
        self._try(self._tracker.open, last=True)
        while True:
            what, outcome = self._waiting.get()
            if what is _END:
                self._try(partial(self._tracker.close, outcome))
                return
            if not self._given_up:
                self._try(what)

    def _try(self, what: Callable[[], None], last: bool = False) -> None:
        """Do it; with `last` a failure is the end of it, otherwise the last of several in a row."""
        try:
            what()
        except Exception as error:  # noqa: BLE001  a tracker is somebody else's code, and must not end the run
            self._failures += 1
            self._given_up = self._given_up or last or self._failures >= MOST_FAILURES
            if self._given_up or not self._said_failed:
                self._said_failed = True
                end = "; it is told no more" if self._given_up else ""
                self._tell(f"{self.name}: {type(error).__name__}: {error}{end}")
        else:
            self._failures = 0

    def _tell(self, trouble: str) -> None:
        self._troubles.put(trouble)
