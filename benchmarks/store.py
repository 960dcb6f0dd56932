"""What the ledger costs over plain Redis: `python -m benchmarks.store [--stored 1000 100000] [--fsync never]`.

A server of the run's own, with its append-only file. On it, in turns, batches of 64 groups of 20 KB each:

    ledger   put → take → advance → commit, by the clients that workers and the learner use; leases are got before
    codec    the same from records to records: encode before the put, decode after the take
    raw      the same bytes as plain keys: a pipeline of 64 SET, then one of 64 GET, by the same Redis library

`ratio` is the time of raw over that of the ledger: median and quartiles over the rounds, in each of which all sides
have had a turn. With 10³ and with 10⁵ groups in the store that wait meanwhile; `flat` is the ratio at the most over
that at the least. `reserve` is reported apart, as microseconds per group. `cpu_us_per_group` is what server and client
take of the CPU, which other programs do not lengthen; the ledger's includes the lease. The measurement begins when the
server has rewritten its file after the filling. Prints one JSON line. The goal is a ratio of 0.7.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
import redis

from benchmarks.measuring import Line, in_turns, parser, ratios, spread
from penstock.services.codec import decode, encode
from penstock.services.replay import Finished, LedgerRules, Ticket
from penstock.services.store.config import Fsync
from penstock.services.store.server import PrivateServer
from penstock.services.trajectory import Completion, Group, Prompt, Sampling, Span, Trajectory
from penstock.services.versions import FIRST

GOAL = 0.7
BATCH = 64
MEMBERS, TOKENS = 8, 236
"""Answers of a group and tokens of each, so that the group's bytes are near 20,000."""
LEASE = 3600.0


def group(index: int) -> Group:
    """A group of answers of random tokens."""
    random = np.random.default_rng(index)

    def answer(number: int) -> Trajectory:
        completion = Completion(
            tokens=random.integers(0, 32_000, TOKENS).astype(np.int32),
            logprobs=-random.random(TOKENS, np.float32),
            actions=np.ones(TOKENS, np.bool_),
            spans=(Span(lineage=0, step=0, count=TOKENS),),
            finish="stop",
            text="",
            worker="rollout-0",
            engine="vllm",
            started=0.0,
            ended=1.0,
        )
        return Trajectory(completion=completion, reward=float(number % 2), parts={"exact": float(number % 2)})

    prompt = Prompt(index=index, source="random", row=index, epoch=0, tokens=np.arange(16, dtype=np.int32), text="")
    trajectories = tuple(answer(number) for number in range(MEMBERS))
    return Group(prompt=prompt, sampling=Sampling(max_tokens=TOKENS), trajectories=trajectories)


class Ledger:
    """One run on the server, with so many groups in it that wait."""

    def __init__(self, server: PrivateServer, stored: int) -> None:
        address = server.address(f"run-{stored}")
        self._worker, self._learner = address.connect(), address.connect()
        self._requests = itertools.count()
        self._groups = [group(index) for index in range(BATCH)]
        self.payloads = [encode(each) for each in self._groups]
        # Nothing grows too old, and the gate is wide enough for all that is to wait.
        self._learner.attach(LedgerRules(10**6, BATCH, None, 10**12))
        self._version = self._learner.reconcile(FIRST, 0, "start")
        self.reserved: list[float] = []
        for _ in range(stored // BATCH):
            self._put(self.payloads, self._reserve())
        _calm(server)
        self._version = self._version.next()

    def plain(self) -> float:
        """Seconds of one batch of bytes through the ledger."""
        tickets = self._reserve()
        began = time.perf_counter()
        self._put(self.payloads, tickets)
        taken = self._learner.take(self._learner.published(), BATCH)
        self._used()
        took = time.perf_counter() - began
        assert len(taken.groups) == BATCH and taken.stale == 0
        return took

    def coded(self) -> float:
        """Seconds of one batch of records."""
        tickets = self._reserve()
        began = time.perf_counter()
        self._put([encode(each) for each in self._groups], tickets)
        taken = self._learner.take(self._learner.published(), BATCH)
        found = [decode(each.payload, Group) for each in taken.groups]
        self._used()
        took = time.perf_counter() - began
        assert len(found) == BATCH
        return took

    def _reserve(self) -> tuple[Ticket, ...]:
        began = time.perf_counter()
        request = str(next(self._requests))
        tickets = self._worker.reserve("rollout-0", self._learner.published(), BATCH, LEASE, request).tickets
        self.reserved.append(time.perf_counter() - began)
        assert len(tickets) == BATCH, "the gate is wide enough"
        return tickets

    def _put(self, payloads: list[bytes], tickets: tuple[Ticket, ...]) -> None:
        lost = self._worker.put_all(
            [Finished(ticket, payload, FIRST) for ticket, payload in zip(tickets, payloads, strict=True)]
        )
        assert not lost

    def _used(self) -> None:
        self._learner.advance(self._version)
        self._learner.commit(self._version)
        self._version = self._version.next()

    def close(self) -> None:
        for store in (self._worker, self._learner):
            store.erase()
            store.close()


def _calm(server: PrivateServer, deadline: float = 120.0) -> None:
    """Wait until the server has rewritten its file, which filling it makes it do again and again."""
    look: Any = redis.Redis.from_url(server.url, password=server.address("look").password, protocol=2)
    ends = time.monotonic() + deadline
    while look.info("persistence")["aof_rewrite_in_progress"]:
        if time.monotonic() > ends:
            raise TimeoutError(f"waited {deadline:.0f} s for the server to rewrite its append-only file")
        time.sleep(0.2)
    look.close()


def raw(server: PrivateServer, payloads: list[bytes]) -> Callable[[], float]:
    """Seconds of one batch of plain keys, each time the same ones."""
    client: Any = redis.Redis.from_url(server.url, password=server.address("look").password, protocol=2)

    def batch() -> float:
        began = time.perf_counter()
        writes, reads = client.pipeline(transaction=False), client.pipeline(transaction=False)
        for number, payload in enumerate(payloads):
            writes.set(f"raw:{number}", payload)
            reads.get(f"raw:{number}")
        writes.execute()
        found = reads.execute()
        took = time.perf_counter() - began
        assert found == payloads
        return took

    return batch


class Spent:
    """CPU seconds of the server and of this process, around a side's batches."""

    def __init__(self, server: PrivateServer) -> None:
        assert server.pid is not None
        self._server = psutil.Process(server.pid)
        self.seconds: dict[str, list[tuple[float, float]]] = {}

    def _now(self) -> tuple[float, float]:
        # In nanoseconds: a batch takes milliseconds, and the kernel's usual counts are of ten.
        told = Path(f"/proc/{self._server.pid}/schedstat").read_text().split()
        return int(told[0]) / 1e9, time.process_time()

    def around(self, name: str, batch: Callable[[], float]) -> Callable[[], float]:
        """The side, with its CPU time noted."""

        def noted() -> float:
            before = self._now()
            took = batch()
            spent = tuple(now - then for now, then in zip(self._now(), before, strict=True))
            self.seconds.setdefault(name, []).append((spent[0], spent[1]))
            return took

        return noted

    def us_per_group(self, rounds: int) -> dict[str, dict[str, float]]:
        """Medians by side."""
        found = {}
        for name, seconds in self.seconds.items():
            servers, clients = zip(*seconds[-rounds:], strict=True)
            found[name] = {
                "server": round(1e6 * statistics.median(servers) / BATCH, 1),
                "client": round(1e6 * statistics.median(clients) / BATCH, 1),
            }
        return found


def measure(server: PrivateServer, stored: int, rounds: int) -> dict[str, Any]:
    """With so many groups in the store."""
    ledger = Ledger(server, stored)
    size = statistics.mean(map(len, ledger.payloads))
    spent = Spent(server)
    sides = {"raw": raw(server, ledger.payloads), "ledger": ledger.plain, "codec": ledger.coded}
    found = in_turns(rounds, 5, **{name: spent.around(name, side) for name, side in sides.items()})
    reserved = ledger.reserved[-rounds:]
    ledger.close()
    speed = {
        name: {
            "groups_per_second": round(BATCH / statistics.median(seconds)),
            "mb_per_second": round(BATCH * size / statistics.median(seconds) / 1e6, 1),
        }
        for name, seconds in found.items()
    }
    return {
        "group_bytes": round(size),
        "speed": speed,
        "ratio": ratios(found["raw"], found["ledger"]),
        "ratio_with_codec": ratios(found["raw"], found["codec"]),
        "cpu_us_per_group": spent.us_per_group(rounds),
        "reserve_us_per_group": spread([1e6 * seconds / BATCH for seconds in reserved], 1),
    }


def main() -> None:
    """Measure and print the line."""
    options = parser(__doc__)
    options.add_argument("--stored", type=int, nargs="+", default=[1000, 100_000])
    options.add_argument("--rounds", type=int, default=60)
    options.add_argument("--fsync", choices=get_args(Fsync), default="never")
    options.add_argument("--folder", type=Path, help="of the append-only file; a temporary one without it")
    args = options.parse_args()
    line = Line("store", goal=GOAL, fsync=args.fsync, batch=BATCH)
    found = {}
    for stored in args.stored:
        # A server for each: what the one before has left in memory and in the file is no part of the next.
        with (
            tempfile.TemporaryDirectory(prefix="penstock-bench-", dir=args.folder) as folder,
            PrivateServer(Path(folder) / "store", Path(folder) / "store.log", fsync=args.fsync) as server,
        ):
            found[stored] = measure(server, stored, args.rounds)
    medians = [each["ratio"]["median"] for each in found.values()]
    flat = round(medians[-1] / medians[0], 3)
    line.end({"stored": found, "flat": flat, "met": min(medians) >= GOAL}, args.keep)


if __name__ == "__main__":
    main()
