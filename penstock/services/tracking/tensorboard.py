"""TensorBoard's event files."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.services.versions import Version

FLUSH_SECONDS = 5.0
"""How old what TensorBoard shows may be."""


class TensorBoard:
    """Scalars by metric name over steps; events and the run file as text.

    A run that falls back to an older checkpoint takes its lost future out of the curves.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, config: str) -> None:
        """`config` is the run file as it was resolved, without secrets."""
        self._folder, self._config = folder, config
        self._file: Any = None
        self._flushed = 0.0

    def open(self) -> None:
        # Imports torch, so not before it is asked for. The writer without a thread and a queue: here is one already.
        from tensorboardX.event_file_writer import EventsWriter

        self._folder.mkdir(exist_ok=True)
        # By their names TensorBoard knows in which order to read the files of several starts.
        self._file = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")

    def begin(self, version: Version) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog

        # A start at a step takes back whatever the files before it hold from that step on.
        self._write(version.step + 1, time.time(), session_log=SessionLog(status=SessionLog.START))
        self._text("config", self._config, version.step, time.time())

    def step(self, version: Version, metrics: Mapping[str, float], at: float) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        # One record for all: a call per value takes ten times as long.
        values = {**metrics, "lineage": float(version.lineage)}
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._write(version.step, at, summary=summary)

    def event(self, version: Version, kind: str, message: str, at: float) -> None:
        self._text(f"events/{kind}", message, version.step, at)

    def close(self, _: str) -> None:
        if self._file is not None:
            self._file.close()

    def abandon(self) -> None:
        """There is nothing but this process."""

    def _text(self, tag: str, text: str, step: int, at: float) -> None:
        from tensorboardX.summary import text as as_summary

        self._write(step, at, summary=as_summary(tag, f"<pre>{html.escape(text)}</pre>"))

    def _write(self, step: int, at: float, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(wall_time=at, step=step, **what))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flushed = time.monotonic()
            self._file.flush()
