"""Clients that a tracker's own process is made to run by tests."""

from __future__ import annotations

import json
import time
from pathlib import Path


class Writing:
    """Writes down what it is told."""

    def __init__(self, file: str, **settings) -> None:
        self._file = Path(file)
        self._write("open", settings)
        print("a word for the log", flush=True)  # noqa: T201

    def begin(self, **facts) -> None:
        self._write("begin", facts)

    def step(self, **facts) -> None:
        self._write("step", facts)

    def event(self, **facts) -> None:
        self._write("event", facts)

    def close(self, **facts) -> None:
        self._write("close", facts)

    def _write(self, what, facts) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps([what, facts]) + "\n")


class Failing(Writing):
    def step(self, **facts) -> None:
        raise ConnectionError("no route to the server")


class Hanging(Writing):
    def step(self, **facts) -> None:
        time.sleep(600)


class Dying(Writing):
    def step(self, **facts) -> None:
        raise SystemExit(7)
