"""A tracker's own process: reads what it is told, calls the client, answers. See `outside.py`.

    python -m penstock.services.tracking.inside KIND ANSWERS_FD
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

import msgspec


class Client(Protocol):
    """A tracker's client; values are plain. Any call may raise."""

    def begin(self, lineage: int, step: int) -> None: ...

    def step(self, lineage: int, step: int, metrics: Mapping[str, float], at: float) -> None: ...

    def event(self, step: int, kind: str, message: str, at: float) -> None: ...

    def close(self, outcome: str) -> None: ...


def serve(open_client: Callable[[Mapping[str, Any]], Client], told: BinaryIO, answer: Callable[[bytes], None]) -> None:
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
        answer(msgspec.json.encode({"error": error} if error else {}) + b"\n")
        if what == "close":
            return
    if client is not None:  # the run is gone without a word
        with contextlib.suppress(Exception):
            client.close("died")


def _clients() -> dict[str, Callable[[Mapping[str, Any]], Client]]:
    from penstock.services.tracking.mlflow_client import MlflowClient
    from penstock.services.tracking.wandb_client import WandbClient

    return {"wandb": lambda settings: WandbClient(**settings), "mlflow": lambda settings: MlflowClient(**settings)}


if __name__ == "__main__":
    kind, answers = sys.argv[1], int(sys.argv[2])
    serve(_clients()[kind], sys.stdin.buffer, lambda data: os.write(answers, data) and None)
    sys.stdout.flush()
    os._exit(0)  # exit hooks of a client may wait for its server
