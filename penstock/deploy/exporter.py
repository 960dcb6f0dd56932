"""What a process says of itself, exported through Ray for Prometheus.

Everything is a gauge, counts too: Ray forgets a gauge that is not said again, so that the series of a worker that left
and of a run that ended vanish by themselves; it keeps a counter's until the cluster ends. Rates are taken of gauges as
of counters.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
from ray.util.metrics import Gauge

from penstock.deploy.catalogue import exported
from penstock.services.prometheus import series
from penstock.services.versions import Version

_ACTORS_OWN = frozenset({"process/pid"})
"""What an actor says to its supervisor only."""
CLOSE_SECONDS = 5.0
"""For an export that is under way when there shall be no more."""

Make = Callable[[str, str, tuple[str, ...]], Any]


@dataclass(frozen=True)
class Export:
    """The same for every process of a run."""

    run: str
    """Name of the run directory."""
    seconds: float
    """Between two exports; Ray forgets what is not said again."""


class Gauges:
    """Ray's gauges by name, made when they are first needed."""

    def __init__(self, labels: Mapping[str, str], make: Make | None = None) -> None:
        """`labels` of the process; `make` takes name, help and the names of labels, by default Ray's own."""
        self._labels, self._make = dict(labels), make or Gauge
        self._made: dict[str, Any] = {}
        self._where: dict[str, tuple[Any, dict[str, str]]] = {}

    def set(self, values: Mapping[str, float]) -> None:
        """Export values by metric name."""
        for name, value in values.items():
            gauge, labels = self._where.get(name) or self._find(name)
            gauge.set(value, tags=labels)

    def _find(self, name: str) -> tuple[Any, dict[str, str]]:
        found = series(name, exported())
        labels = self._labels | dict(found.labels)
        if found.name not in self._made:
            self._made[found.name] = self._make(found.name, found.help, tuple(labels))
        self._where[name] = self._made[found.name], labels
        return self._where[name]


class Exporter:
    """A thread that exports what `source` says, until the process ends or `close`. No trouble in it reaches the run."""

    def __init__(self, export: Export, source: Callable[[], Mapping[str, float]], **labels: str) -> None:
        self._source, self._seconds = source, export.seconds
        self._gauges = Gauges({"run": export.run, **labels})
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exporter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Export no more."""
        self._over.set()
        self._thread.join(timeout=CLOSE_SECONDS)

    def _run(self) -> None:
        told = ""
        while not self._over.wait(self._seconds):
            try:
                self._gauges.set(self._source())
            except Exception as error:  # noqa: BLE001  watching must not end what is watched
                if (said := f"{type(error).__name__}: {error}") != told:
                    told = said
                    print(f"metrics could not be exported: {said}", file=sys.stderr, flush=True)  # noqa: T201


class Process:
    """This process in numbers, beside what its role says of itself."""

    def __init__(self) -> None:
        self._process = psutil.Process(os.getpid())
        self._doing = OneOf("process/doing")

    def __call__(self, said: Mapping[str, Any]) -> dict[str, float]:
        """`said` holds metrics by name, and may hold what the actor is `doing`, the `version` of its weights, and for
        how many seconds it has been `silent`."""
        values = {name: float(value) for name, value in said.items() if "/" in name and name not in _ACTORS_OWN}
        times = self._process.cpu_times()
        values["process/cpu_seconds"] = times.user + times.system
        values["process/rss"] = float(self._process.memory_info().rss)
        if said.get("version"):
            version = Version.parse(said["version"])
            values |= {"process/step": float(version.step), "process/lineage": float(version.lineage)}
        if "silent" in said:
            values["process/silent"] = float(said["silent"])
        if said.get("doing"):
            values |= self._doing(said["doing"])
        return values


class OneOf:
    """Words of which one holds at a time: 1 for that one, 0 for all that held before."""

    def __init__(self, prefix: str, known: Iterable[str] = ()) -> None:
        self._prefix, self._seen = prefix, dict.fromkeys(known)

    def __call__(self, now: str) -> dict[str, float]:
        """By metric name. An empty word holds nothing."""
        if now:
            self._seen[now] = None
        return {f"{self._prefix}/{word}": float(word == now) for word in self._seen}


def export_actor(
    export: Export | None, role: str, name: str, stats: Callable[[], Mapping[str, Any]]
) -> Exporter | None:
    """Export what an actor says of itself for as long as its process lives; None where the run exports nothing."""
    if export is None:
        return None
    process = Process()
    return Exporter(export, lambda: process(stats()), role=role, worker=name)
