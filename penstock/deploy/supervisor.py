"""The supervisor: watches a run, replaces what dies, records what is reported. It waits for nobody."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penstock.deploy import evaluations
from penstock.deploy.fleet import ActorLost, Member
from penstock.deploy.guards.guardian import Guardian
from penstock.deploy.guards.live import Live
from penstock.deploy.journal import Journal
from penstock.deploy.parts import Parts
from penstock.deploy.runfile import RunFile
from penstock.deploy.scaling import Scaling
from penstock.deploy.signals import Interruption
from penstock.deploy.steering import Levers, Steering
from penstock.learner.dials import Dials
from penstock.services.contracts import DeadlinePassed, PenstockError, StoreError
from penstock.services.replay import LedgerCounts
from penstock.services.rundir import RunDir
from penstock.services.versions import Version

TICK = 0.2
"""Seconds between two looks."""
_SLOW = 1.0
"""Seconds between looks at what costs more: the ledger, status.json, the display."""
_INTERRUPTED = "interrupted by"
_DISK = 30.0
"""Seconds between measurements of the run directory."""


class Supervisor:
    """Everything that happens around the data's path while a run goes on. `tick` never blocks for long."""

    def __init__(
        self, parts: Parts, run_file: RunFile, directory: RunDir, journal: Journal, asked: Interruption
    ) -> None:
        self._parts, self._run_file, self._directory = parts, run_file, directory.path
        self._journal, self._asked = journal, asked
        self._seen_slow = self._seen_disk = 0.0
        self._evaluating: evaluations.Pending | None = None
        self._evaluated_at = 0
        self._stopping = ""
        self.ledger: LedgerCounts | None = None
        self.started = False
        """The learner has published its first weights."""
        self.began_at = self.ended_at = 0.0
        """Unix seconds at which the learner began to take groups, and at which it ended."""
        self.restarts: dict[str, int] = {}
        self.scaling = Scaling(parts, journal)
        dials = Dials(run_file.algorithm, run_file.learner, run_file.staleness.max_lag)
        levers = Levers(self.stop, parts.hold_gate, parts.bound_lag)
        self.steering = Steering(directory, journal, self.scaling, lambda: self.learner, levers, dials)
        self.guardian = Guardian(run_file.guards, directory, journal, self.steering)
        self._live = Live()

    @property
    def learner(self) -> Member:
        """Rank 0."""
        return self._parts.learners[0]

    def tick(self) -> None:
        """One look at everything. Raises ActorLost, DeadlinePassed and StoreError when the run cannot go on."""
        for member in self._parts.members:
            member.poll(self._run_file.deadlines.start)
        self.mend_store()
        self._mend_learner()
        self._mend_workers()
        self.scaling.look()
        self.steering.look()
        self._read_reports()
        self._collect_evaluation()
        self.guardian.act()
        self._keep_limits()
        if time.monotonic() - self._seen_slow >= _SLOW:
            self._seen_slow = time.monotonic()
            self._look_at_ledger()
            self._watch_silence()
            if self.started:
                self.guardian.look(self._around(), self._journal.version.step)
            self._journal.controls = self.steering.controls
            self._journal.show(self._parts.members, self.ledger)

    def until(self, done: Callable[[], bool]) -> None:
        """Tick until `done`."""
        while not done():
            self.tick()
            time.sleep(TICK)

    # --- what dies ----------------------------------------------------------------------------------

    def mend_store(self) -> None:
        """Start the private store again when it has died."""
        cause = self._parts.host.revive()
        if cause is not None:
            self.restarts["store"] = self._parts.host.restarts
            self._journal.tell("restarted", "the private store died and was started again", name="store", cause=cause)

    def _mend_learner(self) -> None:
        for member in (*self._parts.learners, *self._parts.scorers):
            if member.state == "dead":
                self._journal.tell("died", member.cause, name=member.name)
                raise ActorLost(
                    f"{member.cause}\n  go on from the last checkpoint with: penstock resume {self._directory}"
                )
        for scorer in self._parts.scorers:
            pid = int(scorer.stats.get("process/pid", scorer.facts.get("pid", 0)))
            if pid != scorer.facts.get("pid"):
                scorer.facts["pid"], scorer.restarts = pid, scorer.restarts + 1
                self.restarts[scorer.name] = scorer.restarts
                self._journal.tell("restarted", f"{scorer.name} died and was started again by Ray", name=scorer.name)

    def _mend_workers(self) -> None:
        """An engine that failed is replaced, never trusted."""
        for member in self.scaling.staying:
            if member.state != "dead":
                if member.state == "ready" and self.started:
                    member.run()
                    self._parts.tell_bound(member)
                    what = f"{member.name} is back" if member.restarts else f"{member.name} begins to generate"
                    self._journal.tell("restarted" if member.restarts else "joined", what, name=member.name)
                continue
            self._journal.tell("died", member.cause, name=member.name)
            most = self._run_file.rollout.max_restarts
            if member.restarts >= most:
                if not member.added:
                    again = f"{member.name} was started again {most} times (rollout.max_restarts)"
                    raise ActorLost(f"{member.cause}\n{again}")
                self.scaling.give_up(member)
                continue
            member.launch()
            self.restarts[member.name] = member.restarts
            self._journal.tell("restarted", f"{member.name} is started again", name=member.name)

    def _watch_silence(self) -> None:
        """A process that lives but does not move any more. Engines may compile for long, so the limit is generous."""
        limit = self._run_file.deadlines.silence
        for member in self._parts.members:
            if member.state != "running" or member.silent <= limit or not self.started:
                continue
            what = (
                f"{member.name} has been silent for {member.silent:.0f} s while {member.stats.get('doing', 'scoring')}"
            )
            if member.role != "rollout":
                raise DeadlinePassed(f"{what} (deadlines.silence is {limit:g} s); its log is {member.log}")
            member.kill()
            member.state, member.cause = "dead", f"{what}; it was ended"

    # --- what is reported ---------------------------------------------------------------------------

    def _read_reports(self) -> None:
        for report in self.learner.read_inbox():
            version = Version.parse(report["version"])
            kind = report["kind"]
            if kind == "started":
                self.started, self.began_at = True, report["at"]
                self._live.stepped()
                self.guardian.begin_again(version.step)
                self._keep_for_evaluation(version)
                self._journal.begin(version)
                self._journal.event("published", f"the learner begins at version {version}", version=str(version))
                self.steering.begun(report["coefficients"])
            elif kind == "rolled_back":
                self._rolled_back(version, report)
            elif kind == "step":
                self.learner.pace = report["metrics"]["learner/tokens_per_second"]
                self._live.stepped()
                self.guardian.seen(report["metrics"], version.step)
                metrics = report["metrics"] | self._around() | self.guardian.counts
                self._journal.step(version, metrics, report["samples"], report["at"])
                self.steering.learned(report["coefficients"])
                self._compare_engines(version, report["metrics"])
                for damage in report["damage"]:
                    self._journal.event("damaged", damage)
                self._evaluate_when_due(version)
            elif kind == "warning":
                self._journal.warn(report["why"], version=str(version))
            else:
                self.ended_at = report["at"] if kind == "ended" else self.ended_at
                facts = {k: v for k, v in report.items() if k not in ("kind", "at")}
                self._journal.event(kind, f"{kind} at version {version}", **facts)

    def _rolled_back(self, version: Version, report: Mapping[str, Any]) -> None:
        """The learner goes on from a checkpoint, in a lineage of its own."""
        self._journal.begin(version)
        what = f"gone back from version {report['left']} to a checkpoint; the run goes on as {version}"
        self._journal.tell("rolled_back", what, version=str(version), left=report["left"], folder=report["folder"])
        self._evaluated_at = min(self._evaluated_at, version.step)
        self.guardian.begin_again(version.step)
        self.steering.begun(report["coefficients"])

    def _around(self) -> dict[str, float]:
        """What the workers, the scorers and the ledger say at the time of a step."""
        workers = [member.stats for member in self._parts.workers if member.state == "running"]
        metrics: dict[str, float] = {}
        for name in sorted({n for stats in workers for n in stats if n.startswith("rollout/")}):
            values = [float(stats[name]) for stats in workers if name in stats]
            averaged = name.endswith(("_seconds", "_share"))
            metrics[name] = sum(values) / (len(values) if averaged else 1)
        metrics["rollout/workers"] = float(len(workers))
        for scorer in self._parts.scorers:
            metrics |= {n: float(v) for n, v in scorer.stats.items() if n.startswith("scorer/")}
        if self.ledger is not None:
            metrics |= {f"ledger/{state}": float(count) for state, count in self.ledger.by_state.items()}
            metrics["ledger/payload_bytes"] = float(self.ledger.payload_bytes)
        return metrics | self._live.read(self.ledger)

    def _compare_engines(self, version: Version, metrics: Mapping[str, float]) -> None:
        """Sampler and learner compute the same log-probs where there is no lag, but for rounding."""
        if self._run_file.engine.kind == "paced":
            return  # a drill's sampler has no model
        gap = metrics.get("mismatch/max", 0.0)
        usual = 1e-4 if self._run_file.engine.dtype == "float32" else 0.05
        limit = self._run_file.recording.mismatch_warning or usual
        if gap > limit:
            what = f"sampler and learner differ by {gap:.2g} nats on tokens of version {version} without lag"
            self._journal.warn(f"{what} (recording.mismatch_warning is {limit:g})", step=version.step)

    def _look_at_ledger(self) -> None:
        """A store that is away now is mended at the next tick, not waited for."""
        if self.started:
            with contextlib.suppress(StoreError):
                self._parts.host.glance.expire()
                self.ledger = self._parts.host.glance.counts()

    # --- evaluation ---------------------------------------------------------------------------------

    def _evaluate_when_due(self, version: Version) -> None:
        """Beside training, on one worker; skipped while the one before is still going on."""
        every = self._run_file.evaluation.every
        job = self._parts.evaluation
        if not every or job is None or self._evaluating is not None or self._stopping:
            return
        if version.step // every > self._evaluated_at // every and self.any_worker:
            self._evaluated_at = version.step
            self._evaluating = evaluations.Pending(job, lambda: self._parts.workers[::-1], most=1)

    def _collect_evaluation(self) -> None:
        pending = self._evaluating
        try:
            if pending is None or not (pending.collect() or pending.overdue):
                return
            self._evaluating = None
            if pending.overdue:
                self._journal.warn(f"an evaluation took longer than evaluation.deadline; {pending.missing} has it")
                return
            self.evaluated(*pending.result())
        except PenstockError as error:
            self._evaluating = None
            self._journal.warn(f"an evaluation was lost: {error}")

    def evaluated(self, version: Version, metrics: dict[str, float]) -> None:
        """Record an evaluation, and let the learner know for the checkpoint it belongs to."""
        self._journal.evaluated(version, metrics)
        self.guardian.seen(metrics, version.step)
        if self.learner.state == "running":
            self.learner.handle.observe.remote(version, metrics)

    @property
    def any_worker(self) -> bool:
        """A worker is generating."""
        return any(worker.state == "running" for worker in self.scaling.staying)

    def _keep_for_evaluation(self, version: Version) -> None:
        """The first weights must still be there when the last worker joins to evaluate them."""
        if self._parts.evaluation is not None:
            self._parts.host.store.pin(version, "evaluation", self._parts.evaluation.deadline)

    def release_from_evaluation(self, version: Version) -> None:
        """The evaluation of `version` is over."""
        self._parts.host.store.unpin(version, "evaluation")

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
        limits = self._run_file.limits
        if limits.minutes is not None and self.started and time.time() - self.began_at > limits.minutes * 60:
            self.stop(f"limits.minutes: {limits.minutes:g} minutes have passed")
        if limits.disk_gib is not None and time.monotonic() - self._seen_disk > _DISK:
            self._seen_disk = time.monotonic()
            used = _bytes_in(self._directory) / 2**30
            if used > limits.disk_gib:
                self.stop(f"limits.disk_gib: the run directory holds {used:.2f} GiB, {limits.disk_gib:g} are allowed")


def _bytes_in(folder: Path) -> int:
    """Size of all files; those that vanish meanwhile count as nothing."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(path) / name).stat().st_size
    return total
