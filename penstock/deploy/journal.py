"""What a run writes down while it goes on, and what it shows: metrics, samples, events, status, the display."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from penstock.deploy.catalogue import newest
from penstock.deploy.config import LimitsSection, RecordingSection
from penstock.deploy.fleet import Member
from penstock.deploy.shown import without_password
from penstock.deploy.view import Controls, Display, Phase, RunView
from penstock.deploy.watching import RunExporter
from penstock.services.lanes import LanesLog
from penstock.services.metrics import MetricsLog
from penstock.services.replay import LedgerCounts
from penstock.services.rundir import RunDir
from penstock.services.tracking.feeds import Feeds
from penstock.services.versions import FIRST, Version

_RECENT = 20
"""Steps over which the time per step is averaged for the estimate of what is left."""


class Page(Protocol):
    """The part of `page.Page` that is needed here."""

    @property
    def address(self) -> str:
        """Empty when nothing is served any more."""
        ...

    def look(self) -> str:
        """Serve it again when it has ended; what there is to say of that, often nothing."""
        ...


class Journal:
    """One run's writer: everything that lands in its directory while it goes on, but for what actors write."""

    def __init__(
        self,
        directory: RunDir,
        name: str,
        recording: RecordingSection,
        limits: LimitsSection,
        display: Display | None,
        trackers: Feeds | None = None,
    ) -> None:
        self._directory, self._name = directory, name
        self._recording, self._limits = recording, limits
        self._display = display
        self._trackers = trackers or Feeds(())
        self._events: Counter[str] = Counter()
        self._log = MetricsLog(directory.metrics)
        self._pace: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self.latest: dict[str, float] = {}
        """Newest value of every metric."""
        self.version = FIRST
        self.first_step = 0
        """Step at which this process began."""
        self.started = self.began = time.time()
        """Unix seconds at which this process, and in it the training, began."""
        self.total = limits.steps
        """Steps in all; the stage may know better than the limits."""
        self.phase: Phase = "starting"
        self.message = ""
        self.controls = Controls()
        """As shown next."""
        self._page: Page | None = None
        self._lanes = LanesLog(directory.activity, directory.activity_before)
        self.standing: dict[str, float] = {}
        """Metrics of this moment, by name, whether there is a step or not; exported and not recorded."""
        self.exporter: RunExporter | None = None
        """Tells Prometheus, once there is a cluster."""
        self._stepped_at = self.started

    def serve(self, page: Page | None) -> None:
        """The run has this page, whose address is shown at once, and which is looked after from now on."""
        if page is not None:
            self._page = page
            self.tell("dashboard", f"watch the run at {page.address}", address=page.address)
            self.show((), None)

    @property
    def run_dir(self) -> Path:
        """The directory that is written into."""
        return self._directory.path

    @property
    def how_to_go_on(self) -> str:
        """What to type when the run has failed."""
        return f"go on from the last checkpoint with: penstock resume {self.run_dir}"

    def stand_at(self, version: Version) -> None:
        """The run will go on from the checkpoint of `version`, and stands there until the learner begins."""
        self.version, self.first_step = version, version.step

    def begin(self, version: Version) -> None:
        """The learner goes on at `version`."""
        self.version, self.first_step, self.began = version, version.step, time.time()
        self._stepped_at = self.began
        self._log.begin(version, time.time())
        self._trackers.begin(version)
        self._pace.append((time.monotonic(), version.step))

    def go_back(self, version: Version) -> None:
        """The learner goes on from an older checkpoint, as `version`; this start of the run began where it began."""
        self.version, self._stepped_at = version, time.time()
        self._log.begin(version, time.time())
        self._trackers.begin(version)
        self._pace.clear()
        self._pace.append((time.monotonic(), version.step))

    def step(self, version: Version, metrics: Mapping[str, float], samples: list[dict[str, Any]], at: float) -> None:
        """One train step is done."""
        self.version = version
        self._pace.append((time.monotonic(), version.step))
        self.latest = newest(self.latest, metrics)
        self._stepped_at = at
        self._log.write(version, metrics, at)
        self._trackers.step(version, metrics, at)
        if samples and version.step % self._recording.samples_every == 0:
            self._directory.write_samples(version, samples[: self._recording.samples])

    def evaluated(self, version: Version, metrics: Mapping[str, float]) -> None:
        """An evaluation of `version` is done; it may be older than the newest step."""
        self.latest = newest(self.latest, metrics)
        self._log.write(version, metrics, time.time())
        self._trackers.step(version, metrics, time.time())

    def event(self, kind: str, message: str, **facts: Any) -> None:
        """Something happened between the steps."""
        self._directory.add_event(kind, message, **facts)
        self._events[kind] += 1
        self._trackers.event(self.version, kind, message, time.time())

    def tell(self, kind: str, message: str, **facts: Any) -> None:
        """An event that a person should see at once; its first line is shown until the next one or the next phase."""
        self.message = message.splitlines()[0]
        self.event(kind, message, **facts)

    def warn(self, message: str, **facts: Any) -> None:
        """Something a person should look at."""
        self.tell("warning", message, **facts)

    def enter(self, phase: Phase, message: str = "") -> None:
        """The run is in a new phase."""
        self.phase, self.message = phase, message.splitlines()[0] if message else ""
        self.event(phase, message or phase)

    def show(self, members: Iterable[Member], ledger: LedgerCounts | None) -> None:
        """Write down what the members did, replace status.json, update the display and what is exported."""
        members = list(members)
        self._lanes.write({member.name: member.take_spans() for member in members})
        self._warn_of_trackers()
        if self._page is not None and (trouble := self._page.look()):
            self.warn(trouble, name="dashboard")
        view = RunView(
            phase=self.phase,
            step=self.version.step,
            steps_total=self.total,
            version=str(self.version),
            metrics=dict(self.latest),
            ledger=ledger,
            workers=tuple(member.view() for member in members),
            started=self.started,
            time_left=self.time_left(),
            message=self.message,
            name=self._name,
            run_dir=str(self._directory.path),
            pid=os.getpid(),
            at=time.time(),
            controls=self.controls,
            page=self._page.address if self._page else "",
            scrape=self.exporter.endpoints if self.exporter else (),
        )
        self._directory.write_status(view)
        if self._display is not None:
            self._display.update(view)
        if self.exporter is not None:
            self.exporter.say(view, self.standing, self._events, self._stepped_at)

    def time_left(self) -> float | None:
        """Estimated seconds to the nearest limit; None before there is a pace, or without limits."""
        estimates = []
        if self.total is not None and len(self._pace) > 1:
            (began, first), (now, last) = self._pace[0], self._pace[-1]
            if last > first:
                estimates.append((self.total - last) * (now - began) / (last - first))
        if self._limits.minutes is not None:
            estimates.append(self._limits.minutes * 60 - (time.time() - self.began))
        return max(0.0, min(estimates)) if estimates else None

    def _warn_of_trackers(self) -> None:
        for trouble in self._trackers.troubles():
            self.warn(without_password(trouble))  # an address may come from the environment, with one in it

    def close(self) -> None:
        """The run is over, and `enter` has said how."""
        self._trackers.close(self.phase)
        for trouble in self._trackers.troubles():
            self.event("warning", without_password(trouble))
        self._log.close()
        self._lanes.close()
