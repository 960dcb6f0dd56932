"""What the gate's server spends on groups that pass, for `benchmarks.supervision`."""

from __future__ import annotations

import random
import resource
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import redis

from penstock.services.replay import LedgerRules, Reservation, Ticket
from penstock.services.store.ledger import RedisStore
from penstock.services.store.server import PrivateServer
from penstock.services.versions import FIRST

MAX_LAG = 2
LEASE = 600.0
PAYLOAD = b"\0" * 20_000
"""A group of eight answers of a few hundred tokens."""
WARM = 2
"""Steps before the measurement."""
COMMIT = 10
"""Steps between checkpoints."""
QUESTIONS = 2000


class Gate:
    """A private server; every measurement is a run of its own on it."""

    def __init__(self, folder: Path) -> None:
        self._server = PrivateServer(folder / "store", folder / "store.log", fsync="never")
        self._runs = 0

    def __enter__(self) -> Gate:
        # A thousand clients and their server have a socket each.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._server.start()
        self._look = redis.Redis.from_url(self._server.url, password=self._server.address("look").password)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._look.close()
        self._server.stop()

    def measure(self, workers: int, groups: int, steps: int) -> dict[str, float]:
        """Microseconds: of the server's CPU per group and per question, of the clients' waiting per call."""
        self._runs += 1
        run = _Run(self._server, f"run-{self._runs}", workers, groups)
        run.play(WARM)
        run.waited.clear()
        before = self._cpu()
        run.play(steps)
        spent = self._cpu() - before
        asked = self._per_question(run.ask)
        looked = self._per_question(run.look)
        run.close()
        return {
            "us_per_group": 1e6 * spent / (groups * steps),
            "latency_us": 1e6 * statistics.median(run.waited),
            "latency_p99_us": 1e6 * statistics.quantiles(run.waited, n=100)[98],
            "ask_us": asked,
            "look_us": looked,
        }

    def _per_question(self, question: Callable[[int], None]) -> float:
        """Microseconds of the server's CPU, asked by all workers in turn."""
        before = self._cpu()
        for turn in range(QUESTIONS):
            question(turn)
        return 1e6 * (self._cpu() - before) / QUESTIONS

    def _cpu(self) -> float:
        """CPU seconds of the server, all of its threads."""
        info = self._look.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


class _Run:
    """Workers that hold what the gate lets them hold, and a learner that takes a step's groups when they are there."""

    def __init__(self, server: PrivateServer, run_id: str, workers: int, groups: int) -> None:
        self._groups = groups
        address = server.address(run_id)
        self._learner = address.connect()
        self._learner.attach(LedgerRules(MAX_LAG, groups, None, 10**12))
        self._version = self._learner.reconcile(FIRST, 0, "start")
        self._workers = [address.connect() for _ in range(workers)]
        self._random = random.Random(0)
        self._held: deque[tuple[RedisStore, Ticket]] = deque()
        self._requests = 0
        self.waited: list[float] = []
        """Seconds of every worker's call."""
        for worker in self._workers:
            worker.published()  # connects
        self._fill()

    def play(self, steps: int) -> None:
        """So many train steps; what the gate lets through is reserved again at once."""
        for _ in range(steps):
            for _ in range(self._groups):
                store, ticket = self._held.popleft()
                began = time.perf_counter()
                store.put(ticket, PAYLOAD, self._version)
                self.waited.append(time.perf_counter() - began)
            taken = self._learner.take(self._version, self._groups)
            assert len(taken.groups) == self._groups and taken.stale == 0
            self._version = self._version.next()
            self._learner.advance(self._version)
            if self._version.step % COMMIT == 0:
                self._learner.commit(self._version)
            self._fill()

    def _fill(self) -> None:
        """Workers in turn, in another order every time, one group each, until the gate is closed."""
        room = (MAX_LAG + 1) * self._groups
        everyone = range(len(self._workers))
        while len(self._held) < room:
            for number in self._random.sample(everyone, min(len(everyone), room - len(self._held))):
                began = time.perf_counter()
                (ticket,) = self._reserve(number).tickets
                self.waited.append(time.perf_counter() - began)
                self._held.append((self._workers[number], ticket))

    def _reserve(self, number: int) -> Reservation:
        self._requests += 1
        return self._workers[number].reserve(f"w{number}", self._version, 1, LEASE, str(self._requests))

    def ask(self, turn: int) -> None:
        """A worker asks at the closed gate."""
        assert self._reserve(turn % len(self._workers)).closed == "lag"

    def look(self, turn: int) -> None:
        """A worker looks for new weights."""
        assert self._workers[turn % len(self._workers)].published() == self._version

    def close(self) -> None:
        for store in (self._learner, *self._workers):
            store.close()
