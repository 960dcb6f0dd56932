"""Who else is told of a run while it goes on: trackers, and Prometheus once there is a cluster."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.deploy.catalogue import by_actors
from penstock.deploy.exporter import Export, Exporter, OneOf, export_actor
from penstock.deploy.view import Phase, RunView
from penstock.learner.metrics import REFUSED
from penstock.services.files import write_atomically
from penstock.services.versions import Version

if TYPE_CHECKING:
    from penstock.deploy.cluster import Cluster
    from penstock.deploy.journal import Journal

COUNTED_FROM_ZERO = (
    *("died", "restarted", "warning", "refused", "guard", "rolled_back", "skipped", "damaged"),
    *("joined", "left", "steered", "checkpoint"),
)
"""Kinds of events that are exported before there is one: an increase is seen only of what was there before."""
_NODES_SECONDS = 15.0
"""Between two looks at which nodes there are."""


def of_run(
    view: RunView, standing: Mapping[str, float], events: Mapping[str, int], stepped_at: float
) -> dict[str, float]:
    """A run in numbers, by metric name. What actors export themselves is left out.

    `standing` is what holds now and not at the newest step, `events` counts by kind, `stepped_at` is the unix time of
    the newest step.
    """
    values = {name: value for name, value in {**view.metrics, **standing}.items() if not by_actors(name)}
    values |= {
        "run/step": float(view.step),
        "run/lineage": float(Version.parse(view.version).lineage),
        "run/last_step_time": stepped_at,
        "run/started_time": view.started,
        "run/paused": float(bool(view.controls.paused_by)),
    }
    if view.steps_total is not None:
        values["run/steps_limit"] = float(view.steps_total)
    counts = dict.fromkeys(COUNTED_FROM_ZERO, 0) | dict(events)
    values |= {f"event/{kind}": float(count) for kind, count in counts.items()}
    if view.ledger is not None:
        values |= {f"ledger/dropped/{reason}": float(count) for reason, count in view.ledger.dropped.items()}
        refused = dict.fromkeys(REFUSED, 0) | dict(view.ledger.refused)
        values |= {f"ledger/refused/{reason}": float(count) for reason, count in refused.items()}
        values["ledger/redelivered"] = float(view.ledger.redelivered)
    return values


class RunExporter:
    """Exports a run from its driver, and keeps a file that tells Prometheus where to look."""

    def __init__(self, export: Export, targets: Path, endpoints: Callable[[], Sequence[str]]) -> None:
        """`targets` is the file; `endpoints` asks the cluster for `host:port` of every node."""
        self._targets, self._endpoints = targets, endpoints
        self.endpoints: tuple[str, ...] = tuple(endpoints())
        """Where to scrape, as known last."""
        self._written: tuple[str, ...] = ()
        """The same, as the file has it: a disk that was full is tried again."""
        self._looked = 0.0
        self._said: tuple[RunView, Mapping[str, float], Counter[str], float] | None = None
        self._phase = OneOf("run/phase")
        self._write_targets()
        self._exporters = (Exporter(export, self._values), export_actor(export, "driver", "driver", self._mine))

    def say(self, view: RunView, standing: Mapping[str, float], events: Counter[str], stepped_at: float) -> None:
        """What is exported from now on. Returns at once."""
        self._said = (view, dict(standing), Counter(events), stepped_at)

    def close(self) -> None:
        """Export no more; Prometheus need not look any more."""
        for exporter in self._exporters:
            if exporter is not None:
                exporter.close()
        with suppress(OSError):
            self._targets.unlink()

    # --- in the exporters' threads ------------------------------------------------------------------

    def _values(self) -> dict[str, float]:
        if time.monotonic() - self._looked > _NODES_SECONDS:
            self._looked = time.monotonic()
            if (found := tuple(self._endpoints())) != self._written:
                self.endpoints = found
                self._write_targets()
        if self._said is None:
            return {}
        phase: Phase = self._said[0].phase
        return of_run(*self._said) | self._phase(phase)

    def _mine(self) -> dict[str, str]:
        return {"doing": self._said[0].phase} if self._said is not None else {}

    def _write_targets(self) -> None:
        """The format of Prometheus' file_sd. No labels: of two runs on one cluster each node is then scraped once."""
        self._targets.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._targets, json.dumps([{"targets": list(self.endpoints)}]).encode(), sync=False)
        self._written = self.endpoints


@contextmanager
def exporting(journal: Journal, export: Export | None, targets: Path, cluster: Cluster) -> Iterator[None]:
    """Inside, the driver exports what the journal shows; nothing does where `export` is None. What keeps it from
    exporting is a warning."""
    if export is not None:
        journal.exporter = _open(journal, export, targets, cluster)
    try:
        yield
    finally:
        if journal.exporter is not None:
            journal.exporter.close()
            journal.exporter = None


def _open(journal: Journal, export: Export, targets: Path, cluster: Cluster) -> RunExporter | None:
    if not cluster.endpoints:
        journal.warn(f"nothing is exported to Prometheus: {cluster.no_endpoints}")
        return None
    try:
        exporter = RunExporter(export, targets, lambda: cluster.endpoints)
    except OSError as error:
        journal.warn(f"nothing is exported to Prometheus: {targets} cannot be written: {error}")
        return None
    where = ", ".join(f"http://{endpoint}/metrics" for endpoint in exporter.endpoints)
    journal.tell("exporting", f"metrics for Prometheus at {where}, listed in {targets}")
    return exporter
