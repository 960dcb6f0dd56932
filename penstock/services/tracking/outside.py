"""A tracker in a process of its own, for clients that bring threads, signal handlers and exit hooks with them.

Lines of JSON go to its standard input, each is answered by one: `{}` or `{"error": …}`. What the client prints goes
to a log. A client that hangs is killed, and the run's own process never waits for it, also not when it ends.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from penstock.services.contracts import DeadlinePassed, PenstockError
from penstock.services.versions import Version

OPEN_SECONDS = 90.0
"""Imports, a log-in, a run made on a server."""
CALL_SECONDS = 30.0
CLOSE_SECONDS = 30.0
"""Sending what is left at the end of a run."""


class TrackerFailed(PenstockError):
    """What a tracker's own process said went wrong."""


class Outside:
    """A `Tracker` whose client lives elsewhere: `python -m penstock.services.tracking.inside CLIENT`."""

    def __init__(self, name: str, client: str, log: Path, settings: Mapping[str, Any]) -> None:
        """`client` is MODULE:CLASS, a `Client` of `inside.py`; `settings` are plain values for it."""
        self.name = name
        self._client, self._log, self._settings = client, log, settings
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = -1
        self._rest = b""

    def open(self) -> None:
        self._answers, theirs = os.pipe()
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "penstock.services.tracking.inside", self._client, str(theirs)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs,),
                    start_new_session=True,  # Ctrl-C is for the run, which then says how it ended
                )
        finally:
            os.close(theirs)
        self._call(OPEN_SECONDS, "open", settings=self._settings)

    def begin(self, version: Version) -> None:
        self._call(CALL_SECONDS, "begin", lineage=version.lineage, step=version.step)

    def step(self, version: Version, metrics: Mapping[str, float], at: float) -> None:
        # JSON has no word for infinity and not-a-number; text is read back as what it was.
        values = {name: value if abs(value) < float("inf") else str(value) for name, value in metrics.items()}
        self._call(CALL_SECONDS, "step", lineage=version.lineage, step=version.step, metrics=values, at=at)

    def event(self, version: Version, kind: str, message: str, at: float) -> None:
        self._call(CALL_SECONDS, "event", step=version.step, kind=kind, message=message, at=at)

    def close(self, outcome: str) -> None:
        if self._process is None:
            return
        try:
            if self._process.poll() is None:
                self._call(CLOSE_SECONDS, "close", outcome=outcome)
        finally:
            self._end()

    def abandon(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def _call(self, deadline: float, what: str, **facts: Any) -> None:
        """Raises TrackerFailed with what the client says, and when it is gone; DeadlinePassed after killing it."""
        assert self._process is not None
        assert self._process.stdin is not None
        if self._process.poll() is not None:
            raise TrackerFailed(f"its process has ended with code {self._process.returncode}; see {self._log}")
        try:
            self._process.stdin.write(msgspec.json.encode({"what": what, **facts}) + b"\n")
            self._process.stdin.flush()
            answer = msgspec.json.decode(self._line(time.monotonic() + deadline))
        except (BrokenPipeError, EOFError) as error:
            self._end()
            raise TrackerFailed(f"its process has ended; see {self._log}") from error
        except DeadlinePassed:
            self._end()
            raise DeadlinePassed(f"waited {deadline:.0f} s for `{what}`; it was ended, see {self._log}") from None
        if said := answer.get("error"):
            raise TrackerFailed(said)

    def _line(self, until: float) -> bytes:
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise DeadlinePassed("")
            data = os.read(self._answers, 65536)
            if not data:
                raise EOFError
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _end(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        answers, self._answers = self._answers, -1
        if answers >= 0:
            os.close(answers)
