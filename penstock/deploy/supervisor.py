"""The supervisor: watches a run, replaces what dies, records what is reported. It waits for nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, get_args

from penstock.deploy.around import scorer_metrics, worker_metrics
from penstock.deploy.autoscaling import Autoscaling
from penstock.deploy.evaluating import Evaluating
from penstock.deploy.exporter import OneOf
from penstock.deploy.fleet import Member
from penstock.deploy.guards.guardian import Guardian
from penstock.deploy.guards.live import Live
from penstock.deploy.journal import Journal
from penstock.deploy.lag_steering import LagSteering
from penstock.deploy.limits import Limits
from penstock.deploy.mending import Mending
from penstock.deploy.mismatch import Mismatch
from penstock.deploy.parts import Parts
from penstock.deploy.polling import Polling
from penstock.deploy.runfile import RunFile
from penstock.deploy.scaling import Scaling
from penstock.deploy.signals import Interruption
from penstock.deploy.steering import Levers, Steering
from penstock.deploy.store_watch import StoreWatch
from penstock.learner import checkpoints
from penstock.learner.config import AdaptiveLag
from penstock.learner.dials import MAX_LAG, Dials
from penstock.learner.requests import NONFINITE, WAITING
from penstock.services.control import ScalableRole
from penstock.services.replay import Closed, LedgerCounts
from penstock.services.rundir import RunDir
from penstock.services.versions import Version

TICK = 0.2
"""Seconds between two looks."""
_SLOW = 1.0
"""Seconds between looks at what costs more: the ledger, status.json, the display."""
_MANY = 500
"""With more workers than this, for which it costs milliseconds, the time between these looks grows as they do."""
_INTERRUPTED = "interrupted by"


class Supervisor:
    """Everything that happens around the data's path while a run goes on. `tick` never blocks for long."""

    def __init__(
        self, parts: Parts, run_file: RunFile, directory: RunDir, journal: Journal, asked: Interruption
    ) -> None:
        self._parts, self._run_file, self._directory = parts, run_file, directory
        self._journal, self._asked = journal, asked
        self._polling = Polling(TICK, run_file.deadlines.silence)
        self._seen_slow = 0.0
        self.evaluating = Evaluating(parts, run_file.evaluation.every, journal, self.evaluated)
        self._limits = Limits(run_file.limits, directory.path)
        self._stopping = ""
        self.ledger: LedgerCounts | None = None
        self._closed: Closed = ""
        self._gate = OneOf("gate/closed", [reason for reason in get_args(Closed) if reason])
        self.started = False
        """The learner has published its first weights."""
        self.began_at = self.ended_at = 0.0
        """Unix seconds at which the learner began to take groups, and at which it ended."""
        self._store = StoreWatch(parts.host, journal, run_file.store.deadline)
        self.scaling: dict[ScalableRole, Scaling] = {
            "rollout": Scaling(parts.rollout, journal, self._store.lapse),
            "scorer": Scaling(parts.scoring, journal),
        }
        self.mending = Mending(
            parts,
            run_file,
            journal,
            self.scaling["rollout"],
            self.scaling["scorer"],
            self._tell_learner_again,
            self._store.lapse,
        )
        dials = Dials(run_file.algorithm, run_file.learner, run_file.staleness.first_lag)
        levers = Levers(self.stop, parts.hold_gate, parts.bound_lag)
        self.steering = Steering(directory, journal, self.scaling, lambda: self.learner, levers, dials)
        self.autoscaling = self._autoscaling()
        self.lag = self._lag_steering()
        self.guardian = Guardian(run_file.guards, directory, journal, self.steering)
        self._live = Live()
        self._mismatch: Mismatch | None = None  # a drill's sampler has no model
        if run_file.engine.kind != "paced":
            self._mismatch = Mismatch(journal, run_file.recording.mismatch_warning, run_file.engine.dtype)

    @property
    def learner(self) -> Member:
        """Rank 0."""
        return self._parts.learners[0]

    def tick(self) -> None:
        """One look at everything. Raises ActorLost, DeadlinePassed and StoreError when the run cannot go on."""
        parts, deadline = self._parts, self._run_file.deadlines.start
        workers = self._polling.look([*parts.learners, *parts.scorers], parts.workers, deadline)
        self.mending.learner.excuse(self._polling.away)
        self.mending.store()
        self.mending.look(self.started, workers)
        for scaling in self.scaling.values():
            scaling.look()
        self.steering.look()
        if self.autoscaling is not None:
            self.autoscaling.looks.tick(self.learner.stats.get("doing") == WAITING)
        self._read_reports()
        self.evaluating.collect()
        self.guardian.act()
        self._keep_limits()
        if time.monotonic() - self._seen_slow >= _SLOW * max(1.0, len(parts.workers) / _MANY):
            self._seen_slow = time.monotonic()
            self._look_at_ledger()
            if self.steering.paused:
                self._live.stepped()  # nobody expects a step
            around = self._around()
            if self.started:
                self.mending.silence()
                self.guardian.look(around, self._journal.version.step)
            self._look_at_load()
            if self._mismatch is not None:
                self._mismatch.swapped(self._parts.workers)
            self._journal.controls = self.steering.controls
            self._journal.standing = around | self.guardian.counts | self._gate(self._closed)
            self._journal.show(self._parts.members, self.ledger)

    def _autoscaling(self) -> Autoscaling | None:
        rules, groups = self._run_file.rollout.autoscale, self._run_file.learner.groups_per_step
        if rules is None:
            return None
        return Autoscaling(rules, groups, self.scaling["rollout"], self.steering.carry_out, self._journal)

    def _lag_steering(self) -> LagSteering | None:
        rules = self._run_file.staleness.max_lag
        return LagSteering(rules, self.steering.carry_out, self._journal) if isinstance(rules, AdaptiveLag) else None

    def _look_at_load(self) -> None:
        if self.autoscaling is None or self.ledger is None:
            return
        controls = self.steering.controls
        moves = self._journal.phase == "training" and controls.gate_open and not controls.paused_by
        bound = int(controls.coefficients.get(MAX_LAG, 0))
        self.autoscaling.look(moves and not self._stopping, self.ledger.by_state["stored"], bound)

    def until(self, done: Callable[[], bool]) -> None:
        """Tick until `done`."""
        while not done():
            self.tick()
            time.sleep(TICK)

    # --- what is reported ---------------------------------------------------------------------------

    def _read_reports(self) -> None:
        for report in self.learner.read_inbox():
            version, kind = Version.parse(report["version"]), report["kind"]
            if kind == "started":
                self._begins(version, report)
            elif kind == "rolled_back":
                self._rolled_back(version, report)
            elif kind == "step":
                self._stepped(version, report)
            elif kind == "warning":
                self._journal.warn(report["why"], version=str(version))
            else:
                if kind == "skipped" and report["why"] == NONFINITE:
                    self._live.skipped()
                self.ended_at = report["at"] if kind == "ended" else self.ended_at
                facts = {k: v for k, v in report.items() if k not in ("kind", "at")}
                self._journal.event(kind, _said(kind, version, report), **facts)

    def _begins(self, version: Version, report: Mapping[str, Any]) -> None:
        """The first weights are published, of the run or of a learner that was started again."""
        if self.started:
            self._goes_on(version, report)
            self.mending.learner.begun()
            return
        self.started, self.began_at = True, report["at"]
        self._live.stepped()
        self.guardian.begin_again(version.step)
        self.evaluating.keep(version)
        self._journal.begin(version)
        self._journal.event("published", f"the learner begins at version {version}", version=str(version))
        self.steering.begun(report["coefficients"], report["heard"])

    def _stepped(self, version: Version, report: Mapping[str, Any]) -> None:
        self.learner.pace = report["metrics"]["learner/tokens_per_second"]
        self._live.stepped()
        self.guardian.seen(report["metrics"], version.step)
        metrics = report["metrics"] | self._around() | self.guardian.counts
        self._journal.step(version, metrics, report["samples"], report["at"])
        self.steering.learned(report["coefficients"], report["heard"])
        if self.autoscaling is not None:
            self.autoscaling.looks.stepped(report["metrics"])
        if self.lag is not None and not self._stopping:
            self.lag.stepped(report["metrics"])
        if self._mismatch is not None:
            self._mismatch.stepped(version, report["metrics"])
        for damage in report["damage"]:
            self._journal.event("damaged", damage)
        if not self._stopping:
            self.evaluating.stepped(version)

    def _rolled_back(self, version: Version, report: Mapping[str, Any]) -> None:
        self._goes_on(version, report)
        what = f"gone back from version {report['left']} to a checkpoint; the run goes on as {version}"
        self._journal.tell("rolled_back", what, version=str(version), left=report["left"], folder=report["folder"])

    def _tell_learner_again(self) -> None:
        """A fresh learner is about to run."""
        self.steering.tell_again()
        if self._stopping:
            self.learner.handle.request_stop.remote(self._stopping)

    def _goes_on(self, version: Version, report: Mapping[str, Any]) -> None:
        """The learner goes on from a checkpoint, in a lineage of its own."""
        self._journal.go_back(version)
        self._live.stepped()
        self.evaluating.went_back(version.step)
        self.guardian.begin_again(version.step)
        self.steering.begun(report["coefficients"], report["heard"])

    def _around(self) -> dict[str, float]:
        """What the workers, the scorers and the ledger say at the time of a step."""
        metrics = worker_metrics(self._parts.workers) | scorer_metrics(self._parts.scorers)
        metrics |= {f"{role}/wanted": float(scaling.wanted) for role, scaling in self.scaling.items()}
        if self.ledger is not None:
            metrics |= {f"ledger/{state}": float(count) for state, count in self.ledger.by_state.items()}
            metrics["ledger/queue_age"] = self.ledger.queue_age
            metrics["ledger/payload_bytes"] = float(self.ledger.payload_bytes)
        return metrics | self._live.read(self.ledger)

    def hear_the_end(self, deadline: float) -> None:
        """What the learner, whose loop has ended, has not told yet. All is saved by then: where its process has been
        killed since, or hangs, its last checkpoint says how far it came."""
        missing = self.learner.last_words(deadline)
        self._read_reports()
        if missing:
            self._journal.warn(missing, name=self.learner.name)
            last = checkpoints.latest(self._directory.checkpoints)
            if last is not None and last.version > self._journal.version:
                self._journal.step(last.version, last.metrics, [], last.written)
        self.ended_at = self.ended_at or time.time()

    def keep_store(self) -> None:
        """One look at the store alone, where nobody looks at everything any more: who parts with what he has waits for
        it. Raises StoreError when it dies again and again."""
        self.mending.store()
        if time.monotonic() - self._seen_slow >= _SLOW:
            self._seen_slow = time.monotonic()
            self._look_at_ledger()

    def _look_at_ledger(self) -> None:
        """A store that is away now is mended at the next tick, not waited for."""
        if self.started and (seen := self._store.look()) is not None:
            self.ledger, self._closed = seen

    def evaluated(self, version: Version, metrics: dict[str, float]) -> None:
        """Record an evaluation, and let the learner know for the checkpoint it belongs to."""
        self._journal.evaluated(version, metrics)
        if version.lineage == self._journal.version.lineage:  # of a future that was given up it says nothing
            self.guardian.seen(metrics, version.step)
        if self.learner.state == "running":
            self.learner.handle.observe.remote(version, metrics)

    # --- ends ---------------------------------------------------------------------------------------

    @property
    def stopped_by_signal(self) -> bool:
        """Training ended because a signal asked for it."""
        return self._stopping.startswith(_INTERRUPTED)

    def stop(self, why: str) -> None:
        """Ask the learner to end after its step; said once."""
        if not self._stopping and self.learner.state == "running" and self.started:
            self._stopping = why
            self._journal.event("stopping", why)
            self.learner.handle.request_stop.remote(why)

    def _keep_limits(self) -> None:
        if self._asked:
            if not self.started:
                raise KeyboardInterrupt
            self.stop(f"{_INTERRUPTED} {self._asked.name}")
        if reached := self._limits.reached(self.began_at if self.started else None):
            self.stop(reached)


def _said(kind: str, version: Version, report: Mapping[str, Any]) -> str:
    """A report of the learner in words."""
    if kind == "skipped" and report["why"] == NONFINITE:
        where = f"its batch is in {report['folder']}" if report["folder"] else report["failed"]
        return f"a train step from version {version} was skipped: its gradients were infinite or undefined; {where}"
    return f"{kind} at version {version}"
