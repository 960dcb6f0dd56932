"""Which way weights take in this run, and the two ends of it put into the actors.

Through files the ends need only a folder. Between GPUs a worker asks rank 0 for a version and rank 0 sends it straight
into the worker's engine; the calls of both go over Ray, the tensors do not. That way has not been run by us
(docs/weights.md).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from penstock.services.contracts import WeightReceiver, WeightSender
from penstock.services.versions import Version
from penstock.services.weights.config import Transport

if TYPE_CHECKING:
    from penstock.services.weights.engine_transfer import Backend
    from penstock.services.weights.manifest import Manifest


@dataclass(frozen=True)
class Route:
    """How weights travel from the learner to the workers."""

    transport: Transport
    folder: Path
    """Where versions lie; unused between GPUs."""
    deadline: float

    @property
    def backend(self) -> Backend | None:
        """The engine's own transfer, where it is used."""
        return None if self.transport in ("shm", "file") else self.transport  # type: ignore[return-value]  # the rest

    def sender(self) -> WeightSender:
        """Rank 0's end. Raises WeightsError where the transport cannot work in this process."""
        if self.backend is None:
            from penstock.services.weights.files import FileSender

            return FileSender(self.folder)
        from penstock.services.weights.engine_transfer import EngineTransferSender

        return EngineTransferSender(self.backend, ray.util.get_node_ip_address())

    def receiver(self, gpus: int, learner: Callable[[], Any]) -> WeightReceiver:
        """A worker's end, in the worker's own process; `learner` gives the handle of rank 0 as it is now."""
        if self.backend is None:
            from penstock.services.weights.files import FileReceiver

            return FileReceiver(self.folder, self.deadline)
        from penstock.services.weights.engine_transfer import EngineTransferReceiver

        me = ray.get_runtime_context().current_actor

        def manifest(version: Version) -> Manifest:
            found: Manifest = ray.get(learner().weights_manifest.remote(version), timeout=self.deadline)
            return found

        def ask(version: Version) -> Future[None]:
            asked: Future[None] = learner().send_weights.remote(version, me, gpus).future()
            return asked

        return EngineTransferReceiver(manifest, ask, self.deadline)


class Outlet:
    """Rank 0's answers to workers that ask for weights: one worker at a time, a new connection for a new process."""

    def __init__(self, sender: Any, deadline: float) -> None:
        self._sender, self._deadline = sender, deadline
        self._lock = threading.Lock()

    def manifest(self, version: Version) -> Manifest:
        found: Manifest = self._sender.manifest(version)
        return found

    def send(self, version: Version, worker: Any, gpus: int) -> None:
        """Send `version` into the engine of the actor `worker`; returns when it is there."""

        def call(method: str, arguments: dict[str, Any]) -> None:
            ray.get(worker.relay.remote(method, arguments), timeout=self._deadline)

        with self._lock:
            self._sender.send(version, worker._actor_id.hex(), gpus, call)
