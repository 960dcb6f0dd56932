"""Weights from GPU to GPU through vLLM's own weight transfer: NCCL between cards, CUDA IPC on one card.

The engine's interface pushes: the trainer calls `start`, `update`, `finish` in the worker and sends meanwhile.
Penstock pulls: a worker swaps when it is ready, so that the learner never waits for it. The two meet here:

    worker's swap ── ask(version) ──▶ sender            the sender keeps a snapshot per version on its card
    relay.serve   ◀─ start, update, finish ── vLLM's trainer engine, on a thread of the sender
    the engine's own thread executes these calls, one after the other, until the answer to `ask` is there

Every worker has a group of its own with the sender, so workers join and leave without the others. The tensors
go straight into the engine's parameters: there is nothing to take a checksum of, so every manifest must have a
probe. Written against vLLM 0.32; the parts that need a GPU have not been run (docs/weights.md).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from penstock.services.contracts import DeadlinePassed, WeightsError
from penstock.services.ports import HeldPort
from penstock.services.versions import Version
from penstock.services.weights.files import WeightsMissing
from penstock.services.weights.manifest import Manifest, ProbeRecord, TensorEntry, dtype_name

if TYPE_CHECKING:
    import torch

Backend = Literal["nccl", "ipc"]
CONTROL = ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update")
"""What vLLM's trainer calls in a worker; the worker methods have the same names."""


class EngineCall(Protocol):
    """Runs a method in every process of an engine; `LLMEngine.collective_rpc` with a deadline."""

    def __call__(self, method: str, arguments: dict[str, Any]) -> object: ...


@dataclass
class Relay:
    """Carries the trainer's calls to the thread that owns the engine. The trainer's end is `call`."""

    deadline: float
    _calls: queue.Queue[tuple[str, dict[str, Any], Future[None]]] = field(default_factory=queue.Queue)

    def call(self, method: str, arguments: dict[str, Any]) -> None:
        """From the trainer's side, any thread: returns when the engine has executed it, raises what it raised."""
        if method not in CONTROL:
            raise WeightsError(f"{method!r} is no call of a weight transfer; there are {', '.join(CONTROL)}")
        done: Future[None] = Future()
        self._calls.put((method, arguments, done))
        try:
            done.result(timeout=self.deadline)
        except TimeoutError as error:
            raise DeadlinePassed(
                f"the engine has not executed {method} for {self.deadline:.0f} s; its worker is not in a swap"
            ) from error

    def serve(self, version: Version, sent: Future[None], engine: EngineCall) -> None:
        """From the engine's thread: execute calls until the sender says that it has sent everything."""
        ends = time.monotonic() + self.deadline
        while not (sent.done() and self._calls.empty()):
            if time.monotonic() > ends:
                raise WeightsError(
                    f"weights of version {version} did not arrive within {self.deadline:.0f} s; the learner's sender "
                    "has not finished"
                )
            try:
                method, arguments, done = self._calls.get(timeout=0.05)
            except queue.Empty:
                continue
            try:
                engine(method, arguments)
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)
                raise WeightsError(f"weights of version {version}: {method} failed in the engine: {error}") from error
        sent.result(timeout=0)


@dataclass
class RelayClient:
    """vLLM's `VLLMWeightSyncClient`, over any function that reaches the worker's relay."""

    call: Callable[[str, dict[str, Any]], None]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.call("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self.call("start_weight_update", {})

    def update_weights(self, update_info: Any) -> None:
        self.call("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:  # noqa: ARG002  ours are in the spans
        self.call("finish_weight_update", {})


class EngineTransferSender:
    """The learner's end, on its first rank. Implements `contracts.WeightSender`."""

    def __init__(self, backend: Backend, address: str, device: str = "cuda") -> None:
        """address: under which workers reach this node. device: the card that sends. Raises WeightsError where the
        transfer cannot work."""
        require_gpu(backend)
        self._device = device
        self._backend = backend
        self._address = address
        self._snapshots: dict[Version, tuple[Manifest, dict[str, torch.Tensor]]] = {}
        self._engines: dict[str, Any] = {}

    def publish(
        self, version: Version, tensors: Iterable[tuple[str, torch.Tensor]], probe: ProbeRecord | None = None
    ) -> None:
        """Keep a copy of the tensors on this card until the version is retired."""
        if probe is None:
            raise WeightsError(f"version {version} has no probe: with {self._backend} nothing else proves its arrival")
        held = {name: tensor.detach().to(self._device, copy=True) for name, tensor in tensors}
        entries = tuple(_entry(name, tensor) for name, tensor in held.items())
        total = sum(entry.bytes for entry in entries)
        self._snapshots[version] = Manifest(str(version), entries, total, probe), held

    def manifest(self, version: Version) -> Manifest:
        """For the receivers, over whatever connects them. Raises WeightsMissing."""
        return self._snapshot(version)[0]

    def send(self, version: Version, worker: str, gpus: int, call: Callable[[str, dict[str, Any]], None]) -> None:
        """Send to one worker, whose engine has `gpus` cards; `call` reaches its relay. One worker at a time."""
        _, held = self._snapshot(version)
        source = _source(held)
        if worker not in self._engines:
            from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

            with HeldPort(self._address) as port:  # until the two ends have met there
                self._engines[worker] = WeightTransferTrainerFactory.trainer_init(
                    self._meeting(gpus, port.number), client=RelayClient(call), source=source
                )
        self._engines[worker].source = source
        self._engines[worker].send_weights()

    def forget(self, worker: str) -> None:
        """A worker has left: close the connection with it."""
        engine = self._engines.pop(worker, None)
        if engine is not None:
            engine.shutdown()

    def retire(self, keep: frozenset[Version]) -> list[Version]:
        gone = sorted(set(self._snapshots) - keep)
        for version in gone:
            del self._snapshots[version]
        return gone

    def close(self) -> None:
        for worker in list(self._engines):
            self.forget(worker)
        self._snapshots.clear()

    def _snapshot(self, version: Version) -> tuple[Manifest, dict[str, torch.Tensor]]:
        if version not in self._snapshots:
            there = ", ".join(map(str, sorted(self._snapshots))) or "none"
            raise WeightsMissing(f"weights of version {version} are not on the learner's card; there are: {there}")
        return self._snapshots[version]

    def _meeting(self, gpus: int, port: int) -> Any:
        """How the two ends find each other."""
        if self._backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(rank=0)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        return NCCLTrainerInitInfo(rank=0, master_address=self._address, master_port=port, world_size=1 + gpus)


class EngineTransferReceiver:
    """A worker's end. Implements `contracts.WeightReceiver`, and loads into the engine without a detour."""

    def __init__(
        self, manifests: Callable[[Version], Manifest], ask: Callable[[Version], Future[None]], deadline: float
    ) -> None:
        """manifests, ask: the sender's `manifest` and `send`, over whatever connects the two; `ask` returns at once."""
        self._manifests = manifests
        self._ask = ask
        self.relay = Relay(deadline)

    def manifest(self, version: Version) -> Manifest:
        return self._manifests(version)

    def fetch(self, version: Version) -> AbstractContextManager[Mapping[str, torch.Tensor]]:
        """Refused: there is no copy to look at."""
        raise WeightsError(
            f"weights of version {version} go straight into the engine; to read them use transport shm or file"
        )

    def load(self, version: Version, engine: EngineCall) -> None:
        """Have `version` sent into the engine. Called by the thread that owns it. Raises WeightsError."""
        self.relay.serve(version, self._ask(version), engine)


def require_gpu(backend: str) -> None:
    """Raise WeightsError unless this process can send with `backend`, saying what to use instead."""
    import torch

    if not torch.cuda.is_available():
        raise WeightsError(
            f"weights.transport = {backend} moves weights between NVIDIA GPUs and this process sees none; "
            "use auto, shm or file"
        )
    if backend == "ipc" and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise WeightsError(
            "weights.transport = ipc shares one card with one learner rank; with several ranks use nccl or shm"
        )


def _entry(name: str, tensor: torch.Tensor) -> TensorEntry:
    size = tensor.numel() * tensor.element_size()
    return TensorEntry(name, tuple(tensor.shape), dtype_name(tensor), checksum="", bytes=size, file="")


def _source(held: Mapping[str, torch.Tensor]) -> Any:
    """vLLM's view of a snapshot."""
    from vllm.distributed.weight_transfer import ParamMeta, WeightSource

    class Snapshot(WeightSource):  # type: ignore[misc]  # vLLM's types are not seen here
        def metadata(self) -> list[Any]:
            return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in held.items()]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return iter(held.items())

    return Snapshot()
