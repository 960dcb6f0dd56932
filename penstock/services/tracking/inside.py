"""A tracker's own process: reads what it is told, calls the client, answers. See `outside.py`.

python -m penstock.services.tracking.inside MODULE:CLIENT ANSWERS_FD
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol

import msgspec


class Client(Protocol):
    """A tracker's client; values are plain. Any call may raise."""

    def begin(self, lineage: int, step: int) -> None: ...

    def step(self, lineage: int, step: int, metrics: Mapping[str, float], at: float) -> None: ...

    def event(self, step: int, kind: str, message: str, at: float) -> None: ...

    def close(self, outcome: str) -> None: ...


def serve(open_client: Callable[[Mapping[str, Any]], Client], told: IO[bytes], answers: IO[bytes]) -> None:
    """Until `told` ends, or the client was closed."""
    client: Client | None = None
    for line in told:
        call = msgspec.json.decode(line)
        what = call.pop("what")
        error = ""
        try:
            if what == "open":
                client = open_client(call["settings"])
            elif client is not None:
                if what == "step":
                    call["metrics"] = {name: float(value) for name, value in call["metrics"].items()}
                getattr(client, what)(**call)
        except Exception as problem:  # noqa: BLE001  whatever a client raises, the run is told of it
            error = f"{type(problem).__name__}: {problem}"
        answers.write(msgspec.json.encode({"error": error} if error else {}) + b"\n")
        if what == "close":
            return
    if client is not None:  # the run is gone without a word
        with contextlib.suppress(Exception):
            client.close(outcome="died")


def _client(path: str) -> Callable[[Mapping[str, Any]], Client]:
    module, _, name = path.partition(":")
    found = getattr(importlib.import_module(module), name)
    return lambda settings: found(**settings)


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[2]), "wb", buffering=0) as pipe:
        serve(_client(sys.argv[1]), sys.stdin.buffer, pipe)
    sys.stdout.flush()
    os._exit(0)  # exit hooks of a client may wait for its server
