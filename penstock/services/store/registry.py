"""What is known for a while only, in memory: workers that announced themselves, and pinned weight versions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from penstock.services.versions import Version

K = TypeVar("K")
V = TypeVar("V")


class Expiring(Generic[K, V]):
    """A dictionary whose entries end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[K, tuple[float, V]] = {}

    def put(self, key: K, value: V, seconds: float) -> None:
        with self._lock:
            self._entries[key] = (self._clock() + seconds, value)

    def remove(self, key: K) -> None:
        with self._lock:
            self._entries.pop(key, None)

    def living(self) -> dict[K, V]:
        now = self._clock()
        with self._lock:
            self._entries = {key: entry for key, entry in self._entries.items() if entry[0] > now}
            return {key: value for key, (_, value) in self._entries.items()}


class Registry:
    """The part of a store that is no ledger."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._workers: Expiring[str, dict[str, str | float]] = Expiring(clock)
        self._pins: Expiring[tuple[Version, str], None] = Expiring(clock)

    def announce(self, worker: str, facts: Mapping[str, str | float], ttl: float) -> None:
        """Say that `worker` is alive, with what others may want to know of it; forgotten after `ttl` seconds."""
        self._workers.put(worker, dict(facts), ttl)

    def workers(self) -> dict[str, dict[str, str | float]]:
        """The facts of every worker that announced itself and has not fallen silent."""
        return self._workers.living()

    def pin(self, version: Version, reader: str, seconds: float) -> None:
        self._pins.put((version, reader), None, seconds)

    def unpin(self, version: Version, reader: str) -> None:
        self._pins.remove((version, reader))

    def pinned(self) -> frozenset[Version]:
        return frozenset(version for version, _ in self._pins.living())
