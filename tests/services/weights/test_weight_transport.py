"""Which transport a run uses, and the engine's own transfer as far as it goes without a GPU."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.services.contracts import DeadlinePassed, WeightsError
from penstock.services.versions import Version
from penstock.services.weights import engine_transfer
from penstock.services.weights.config import choose, default_folder
from penstock.services.weights.engine_transfer import (
    EngineTransferReceiver,
    EngineTransferSender,
    Relay,
    RelayClient,
    require_gpu,
)
from penstock.services.weights.files import WeightsMissing
from penstock.services.weights.manifest import Manifest, ProbeRecord

V1 = Version(0, 1)
PROBE = ProbeRecord((1, 2), (-0.5,))


@pytest.mark.parametrize(
    ("asked", "several", "cuda", "expected"),
    [("auto", False, False, "shm"), ("auto", True, True, "file"), ("shm", False, True, "shm"),
     ("file", False, False, "file"), ("nccl", True, True, "nccl"), ("ipc", False, True, "ipc")],
)  # fmt: skip
def test_the_transport_fits_the_machines(asked: str, several: bool, cuda: bool, expected: str):
    assert choose(asked, several, cuda)[0] == expected


@pytest.mark.parametrize(
    ("asked", "several", "cuda", "why"),
    [("shm", True, True, "ends at a node and this run may use several"),
     ("nccl", False, False, "GPUs and none is in use"), ("ipc", True, True, "use nccl"),
     ("rdma", False, True, "no transport is called 'rdma'")],
)  # fmt: skip
def test_a_transport_that_cannot_work_is_refused_with_the_reason(asked: str, several: bool, cuda: bool, why: str):
    chosen, reason = choose(asked, several, cuda)
    assert chosen is None and why in reason


def test_files_lie_in_memory_on_one_node_and_in_the_run_directory_otherwise():
    assert default_folder("shm", "r1", Path("runs/a")) == Path("/dev/shm/penstock-r1/weights")
    assert default_folder("file", "r1", Path("runs/a")) == Path("runs/a/weights")


def test_without_a_gpu_the_engines_own_transfer_says_what_to_use_instead():
    for backend in ("nccl", "ipc"):
        with pytest.raises(WeightsError, match=f"transport = {backend} .* this process sees none; use auto, shm or"):
            EngineTransferSender(backend, "127.0.0.1")


def test_ipc_with_several_learner_ranks_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    require_gpu("nccl")
    with pytest.raises(WeightsError, match="one card with one learner rank"):
        require_gpu("ipc")


class Trainer:
    """Makes the calls of vLLM's trainer engine, in its order; the data would flow during `update_weights`."""

    def __init__(self, client: RelayClient, source: Any) -> None:
        self.client, self.source, self.ended = client, source, False
        client.init_weight_transfer_engine({"rank_offset": 1})

    def send_weights(self) -> None:
        self.client.start_weight_update()
        self.client.update_weights({"names": list(self.source)})
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> EngineTransferSender:
    monkeypatch.setattr(engine_transfer, "require_gpu", lambda backend: None)
    monkeypatch.setattr(engine_transfer, "_source", lambda held: held)
    sender = EngineTransferSender("nccl", "127.0.0.1", device="cpu")
    sender.publish(V1, [("a", torch.ones(2)), ("b", torch.zeros(3, dtype=torch.bfloat16))], PROBE)
    return sender


def connect(sender: EngineTransferSender, deadline: float = 5.0) -> EngineTransferReceiver:
    """A worker's end whose requests are answered in a thread, as an actor would."""

    def ask(version: Version) -> Future[None]:
        sent: Future[None] = Future()

        def body() -> None:
            try:
                if "w0" not in sender._engines:
                    sender._engines["w0"] = Trainer(RelayClient(receiver.relay.call), None)
                sent.set_result(sender.send(version, "w0", 1, receiver.relay.call))
            except Exception as error:  # noqa: BLE001  (handed over)
                sent.set_exception(error)

        threading.Thread(target=body, daemon=True).start()
        return sent

    receiver = EngineTransferReceiver(sender.manifest, ask, deadline)
    return receiver


def test_the_engines_thread_executes_the_trainers_calls_in_order(sender: EngineTransferSender):
    receiver = connect(sender)
    calls: list[tuple[str, Any]] = []

    def engine(method: str, arguments: dict[str, Any]) -> None:
        assert threading.current_thread() is threading.main_thread()
        calls.append((method, arguments))

    for _ in range(2):
        receiver.load(V1, engine)
    first = [("init_weight_transfer_engine", {"init_info": {"rank_offset": 1}})]
    each = [("start_weight_update", {}), ("update_weights", {"update_info": {"names": ["a", "b"]}}),
            ("finish_weight_update", {})]  # fmt: skip
    assert calls == first + each + each


def test_a_call_that_fails_in_the_engine_is_an_error_on_both_sides(sender: EngineTransferSender):
    receiver = connect(sender)

    def engine(method: str, arguments: dict[str, Any]) -> None:
        if method == "update_weights":
            raise RuntimeError("out of memory")

    with pytest.raises(WeightsError, match=r"version 0\.1: update_weights failed in the engine: out of memory"):
        receiver.load(V1, engine)


def test_what_the_sender_cannot_send_comes_out_at_the_worker(sender: EngineTransferSender):
    with pytest.raises(WeightsMissing, match=r"version 0\.9 are not on the learner's card; there are: 0\.1"):
        connect(sender).load(Version(0, 9), lambda method, arguments: None)


def test_both_ends_have_deadlines():
    relay = Relay(deadline=0.1)
    with pytest.raises(WeightsError, match=r"version 0\.1 did not arrive within 0 s"):
        relay.serve(V1, Future(), lambda method, arguments: None)
    with pytest.raises(DeadlinePassed, match=r"has not executed start_weight_update .* its worker is not in a swap"):
        relay.call("start_weight_update", {})
    with pytest.raises(WeightsError, match="'shutdown' is no call of a weight transfer"):
        relay.call("shutdown", {})


def test_a_snapshot_is_a_copy_with_a_probe_until_it_is_retired(sender: EngineTransferSender):
    manifest = sender.manifest(V1)
    assert manifest.total_bytes == 14 and [t.dtype for t in manifest.tensors] == ["float32", "bfloat16"]
    assert Manifest.decode(manifest.encode(), "here") == manifest
    with pytest.raises(WeightsError, match=r"version 0\.2 has no probe"):
        sender.publish(Version(0, 2), [("a", torch.ones(1))])
    assert sender.retire(frozenset()) == [V1]
    with pytest.raises(WeightsMissing):
        sender.manifest(V1)


def test_a_worker_that_leaves_is_disconnected(sender: EngineTransferSender):
    trainer = Trainer(RelayClient(lambda method, arguments: None), None)
    sender._engines["w0"] = trainer
    sender.forget("w0")
    sender.forget("w0")
    assert trainer.ended
    sender.close()


def test_tensors_that_went_into_an_engine_cannot_be_read(sender: EngineTransferSender):
    with pytest.raises(WeightsError, match="use transport shm or file"):
        connect(sender).fetch(V1)
