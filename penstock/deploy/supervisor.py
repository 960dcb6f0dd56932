"""The supervisor: watches a run, replaces what dies, records what is reported. It waits for nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import ray.exceptions

from penstock.deploy import evaluations
from penstock.deploy.fleet import ActorLost, Member
from penstock.deploy.journal import Journal
from penstock.deploy.parts import Parts
from penstock.deploy.runfile import RunFile
from penstock.deploy.signals import Interruption
from penstock.services.contracts import DeadlinePassed, LedgerCounts, PenstockError
from penstock.services.versions import Version

TICK = 0.2
"""Seconds between two looks."""
_SLOW = 1.0
"""Seconds between looks at what costs more: the ledger, status.json, the display."""
_DISK = 30.0
"""Seconds between measurements of the run directory."""


class Supervisor:
    """Everything that happens around the data's path while a run goes on. `tick` never blocks for long."""

    def __init__(self, parts: Parts, run_file: RunFile, directory: Path, journal: Journal, asked: Interruption) -> None:
        self._parts, self._run_file, self._directory = parts, run_file, directory
        self._journal, self._asked = journal, asked
        self._store = parts.host.store
        self._seen_slow = self._seen_disk = 0.0
        self._began = time.monotonic()
        self._evaluating: evaluations.Pending | None = None
        self._evaluated_at = 0
        self._stopping = ""
        self._attached = False
        self.ledger: LedgerCounts | None = None
        self.started = False
        """The learner has published its first weights."""
        self.restarts: dict[str, int] = {}

    @property
    def learner(self) -> Member:
        """Rank 0."""
        return self._parts.learners[0]

    def tick(self) -> None:
        """One look at everything. Raises ActorLost, DeadlinePassed and StoreError when the run cannot go on."""
        for member in self._parts.members:
            member.poll(self._run_file.deadlines.start)
        self._mend_store()
        self._mend_learner()
        self._mend_workers()
        self._read_reports()
        self._collect_evaluation()
        self._keep_limits()
        if time.monotonic() - self._seen_slow >= _SLOW:
            self._seen_slow = time.monotonic()
            self._look_at_ledger()
            self._watch_silence()
            self._journal.show(self._parts.members, self.ledger)

    def until(self, done: Callable[[], bool]) -> None:
        """Tick until `done`."""
        while not done():
            self.tick()
            time.sleep(TICK)

    # --- what dies ----------------------------------------------------------------------------------

    def _mend_store(self) -> None:
        cause = self._parts.host.revive()
        if cause is not None:
            self._journal.event("restarted", "the private store died and was started again", name="store", cause=cause)

    def _mend_learner(self) -> None:
        for member in (*self._parts.learners, *self._parts.scorers):
            if member.state == "dead":
                self._journal.event("died", member.cause, name=member.name)
                raise ActorLost(member.cause)

    def _mend_workers(self) -> None:
        """An engine that failed is replaced, never trusted."""
        for member in self._parts.workers:
            if member.state != "dead":
                if member.state == "ready" and self.started:
                    member.run()
                continue
            self._journal.event("died", member.cause, name=member.name)
            most = self._run_file.rollout.max_restarts
            if member.restarts >= most:
                raise ActorLost(f"{member.cause}\n{member.name} was started again {most} times (rollout.max_restarts)")
            member.launch()
            self.restarts[member.name] = member.restarts
            self._journal.event("restarted", f"{member.name} is started again", name=member.name)

    def _watch_silence(self) -> None:
        """A process that lives but does not move any more. Engines may compile for long, so the limit is generous."""
        limit = self._run_file.deadlines.silence
        for member in (*self._parts.learners, *self._parts.workers):
            silent = float(member.stats.get("silent", 0.0))
            if member.state != "running" or silent <= limit:
                continue
            what = f"{member.name} has been silent for {silent:.0f} s while {member.stats.get('doing')}"
            if member.role == "learner":
                raise DeadlinePassed(f"{what} (deadlines.silence is {limit:g} s); its log is {member.log}")
            member.kill()
            member.state, member.cause = "dead", f"{what}; it was ended"

    # --- what is reported ---------------------------------------------------------------------------

    def _read_reports(self) -> None:
        for report in self.learner.read_inbox():
            version = Version.parse(report["version"])
            kind = report["kind"]
            if kind == "started":
                self.started = self._attached = True
                self._journal.begin(version)
                self._journal.event("published", f"the learner begins at version {version}", version=str(version))
            elif kind == "step":
                self._journal.step(version, report["metrics"] | self._around(), report["samples"], report["at"])
                for damage in report["damage"]:
                    self._journal.event("damaged", damage)
                self._evaluate_when_due(version)
            else:
                facts = {k: v for k, v in report.items() if k not in ("kind", "at")}
                self._journal.event(kind, f"{kind} at version {version}", **facts)

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
        return metrics

    def _look_at_ledger(self) -> None:
        if self._attached:
            self._store.expire()
            self.ledger = self._store.counts()

    # --- evaluation ---------------------------------------------------------------------------------

    def _evaluate_when_due(self, version: Version) -> None:
        """Beside training, on one worker; skipped while the one before is still going on."""
        every = self._run_file.evaluation.every
        job = self._parts.evaluation
        if not every or job is None or self._evaluating is not None or self._stopping:
            return
        if version.step // every > self._evaluated_at // every:
            running = [worker for worker in self._parts.workers if worker.state == "running"]
            if running:
                self._evaluated_at = version.step
                self._evaluating = evaluations.begin(running[-1:], job)

    def _collect_evaluation(self) -> None:
        pending = self._evaluating
        if pending is None or not pending.done:
            return
        self._evaluating = None
        try:
            version, metrics = pending.result()
        except (ray.exceptions.RayError, PenstockError) as error:  # the worker died or was drained meanwhile
            self._journal.event("warning", f"an evaluation was lost: {str(error).strip().splitlines()[-1]}")
            return
        self._journal.evaluated(version, metrics)
        if self.learner.state == "running":
            self.learner.handle.observe.remote(metrics)

    # --- ends ---------------------------------------------------------------------------------------

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
            self.stop(f"interrupted by {self._asked.name}")
        limits = self._run_file.limits
        if limits.minutes is not None and time.monotonic() - self._began > limits.minutes * 60:
            self.stop(f"limits.minutes: {limits.minutes:g} minutes have passed")
        if limits.disk_gib is not None and time.monotonic() - self._seen_disk > _DISK:
            self._seen_disk = time.monotonic()
            used = sum(f.stat().st_size for f in self._directory.rglob("*") if f.is_file()) / 2**30
            if used > limits.disk_gib:
                self.stop(f"limits.disk_gib: the run directory holds {used:.2f} GiB, {limits.disk_gib:g} are allowed")
