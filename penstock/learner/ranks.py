"""The ranks of a learner as one team: rank 0 leads, the others wait for what it announces.

Everything said here is bytes or numbers on the CPU and goes over gloo, also when gradients go over NCCL. Bytes
are never pickled.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from penstock.learner.rank import RankLate, RankLost
from penstock.services.contracts import PenstockError

Numbers = NDArray[np.float64]


class Team:
    """This process's place among the ranks. Made by `join`; one per process."""

    def __init__(self, rank: int, size: int, timeout: float, group: dist.ProcessGroup | None) -> None:
        self.rank = rank
        self.size = size
        self._timeout = timeout
        self._group = group

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def announce(self, message: bytes) -> bytes:
        """The message of rank 0, on every rank; what followers pass in is not looked at.

        A follower waits at most the collective timeout: a leader with nothing to say says so before that.
        """
        if self.size == 1:
            return message
        with self._waiting("rank 0", "an announcement"):
            length = torch.tensor([len(message)])
            dist.broadcast(length, 0, group=self._group)
            data = _tensor(message) if self.leads else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, 0, group=self._group)
        return bytes(data.numpy().data)

    def scatter(self, payloads: Sequence[bytes]) -> bytes:
        """To every rank its own of rank 0's payloads; followers pass nothing."""
        if self.size == 1:
            return payloads[0]
        if self.leads:
            for rank in range(1, self.size):
                with self._waiting(f"rank {rank}", "its share of the batch to arrive"):
                    dist.send(torch.tensor([len(payloads[rank])]), rank, group=self._group)
                    dist.send(_tensor(payloads[rank]), rank, group=self._group)
            return payloads[0]
        return self._receive(0, "its share of the batch")

    def gather(self, payload: bytes) -> list[bytes]:
        """Every rank's payload, in the order of ranks, on rank 0; an empty list elsewhere."""
        if self.leads:
            return [payload] + [self._receive(rank, "its results") for rank in range(1, self.size)]
        with self._waiting("rank 0", "taking this rank's results"):
            dist.send(torch.tensor([len(payload)]), 0, group=self._group)
            dist.send(_tensor(payload), 0, group=self._group)
        return []

    def sum(self, values: Numbers) -> Numbers:
        """Element-wise sum over all ranks, on every rank."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Numbers) -> Numbers:
        """Element-wise maximum over all ranks, on every rank."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def barrier(self) -> None:
        """Returns when all ranks have come here."""
        self.sum(np.zeros(1))

    def _reduce(self, values: Numbers, how: dist.ReduceOp.RedOpType) -> Numbers:
        if self.size == 1:
            return values
        tensor = torch.from_numpy(values.copy())
        with self._waiting("all ranks", "a sum over the ranks"):
            dist.all_reduce(tensor, how, group=self._group)
        return tensor.numpy()

    def _receive(self, rank: int, what: str) -> bytes:
        with self._waiting(f"rank {rank}", what):
            length = torch.empty(1, dtype=torch.int64)
            dist.recv(length, rank, group=self._group)
            data = torch.empty(int(length), dtype=torch.uint8)
            dist.recv(data, rank, group=self._group)
        return bytes(data.numpy().data)

    @contextlib.contextmanager
    def _waiting(self, whom: str, what: str) -> Iterator[None]:
        """Turn what gloo raises into who waited for whom, for what and how long."""
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            took = time.monotonic() - began
            text = f"learner rank {self.rank} of {self.size} waited {took:.0f} s for {whom} ({what})"
            if took >= 0.9 * self._timeout:
                raise RankLate(f"{text}; collective_timeout is {self._timeout:.0f} s") from error
            raise RankLost(f"{text} and lost contact; see that rank's log for the cause") from error


def join(rank: int, size: int, meet_at: str, timeout: float) -> Team:
    """Join the team at `meet_at` (`host:port`, where rank 0 listens) and return this process's place in it.

    Waits at most `timeout` seconds for the others. Raises DeadlinePassed when they do not come. A process that
    has joined before keeps its group, which must be the same one.
    """
    if dist.is_initialized() and (dist.get_rank(), dist.get_world_size()) != (rank, size):
        raise PenstockError(
            f"this process is rank {dist.get_rank()} of {dist.get_world_size()} already and cannot become rank "
            f"{rank} of {size}"
        )
    # DeepSpeed reads its place from the environment; one device per process is visible, so the local rank is 0.
    host, _, port = meet_at.rpartition(":")
    os.environ.update(
        RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(size), MASTER_ADDR=host.strip("[]"), MASTER_PORT=port
    )
    limit = timedelta(seconds=timeout)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        began = time.monotonic()
        try:
            dist.init_process_group(backend, init_method=f"tcp://{meet_at}", rank=rank, world_size=size, timeout=limit)
        except (RuntimeError, ValueError) as error:
            raise RankLate(
                f"learner rank {rank} of {size} waited {time.monotonic() - began:.0f} s for all ranks to meet at "
                f"{meet_at}: {error}"
            ) from error
    group = dist.new_group(backend="gloo", timeout=limit) if size > 1 else None
    return Team(rank, size, timeout, group)


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
