"""One run from start to end, in the order in which things happen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from penstock.deploy import evaluations, job, plans
from penstock.deploy.around import token_account
from penstock.deploy.drawing import Drawing
from penstock.deploy.ending import Ending, ending, tenure
from penstock.deploy.fleet import Member, wait_until_ready
from penstock.deploy.journal import Journal
from penstock.deploy.memory import beside_actors
from penstock.deploy.page import Page, beside
from penstock.deploy.parts import Parts
from penstock.deploy.runfile import RunFile
from penstock.deploy.signals import Interruption
from penstock.deploy.storehost import run_id_of
from penstock.deploy.summary import Phases, first_and_last, judge, ledger_summary, library_versions, over_steps
from penstock.deploy.supervisor import Supervisor
from penstock.deploy.view import Display, Phase
from penstock.deploy.watching import exporting
from penstock.learner import checkpoints
from penstock.services.contracts import DeadlinePassed
from penstock.services.metrics import read_rows
from penstock.services.replay import LedgerCounts
from penstock.services.rundir import RunDir, RunDirError
from penstock.services.tracking.feeds import Feeds, trackers

ENDED_BY_LIMIT = "run_ended"
"""Drop reason of what is outstanding when a run is over for good."""


def train(run_file: RunFile, directory: RunDir, display: Display | None = None, resume: bool = False) -> None:
    """Train as the run file says, in a directory that is there already.

    `resume` goes on from the latest checkpoint. Raises PenstockError with the cause when the run fails, and
    KeyboardInterrupt after a clean end that was asked for by a signal.
    """
    with tenure(directory) as held:
        if resume:
            require_more_to_do(run_file, directory)
            directory.begin_again(run_file.to_yaml())
        with beside(run_file.dashboard, directory) as page:
            held.outcome = Conductor(run_file, directory, display, held.asked, resume, page).go()


class Conductor:
    """Start, evaluate, train, evaluate, end; and a summary whatever happens."""

    def __init__(
        self,
        run_file: RunFile,
        directory: RunDir,
        display: Display | None,
        asked: Interruption,
        resume: bool,
        page: Page | None = None,
    ) -> None:
        """`page`: at which people watch the run; None when nothing is served."""
        self._run_file, self._directory, self._asked = run_file, directory, asked
        feeds = Feeds(list(trackers(run_file.tracking, directory, run_id_of(directory))))
        self._journal = Journal(directory, run_file.name, run_file.recording, run_file.limits, display, feeds)
        self._journal.serve(page)
        self._phases = Phases()
        self._checkpoint = _latest(directory) if resume else None
        if self._checkpoint is not None:
            self._journal.stand_at(checkpoints.read(self._checkpoint).version)
        self._resumed = resume
        self._supervisor: Supervisor
        self._drawing = Drawing(directory, run_file.deadlines.drain)
        self._peaks: dict[str, int] = {}
        self._tokens: dict[str, int] = {}

    def go(self) -> Phase:
        """The whole run; returns how it ended. Whatever happens, a summary is written and nothing that was started is
        left."""
        with ending(self._conclude, self._asked, self._directory.path) as end, ExitStack() as stack:
            self._journal.enter("starting", "Ray, the store, engines")
            self._journal.show((), None)  # an earlier start has left a status that says something else
            with self._phases.phase("start"):
                parts = stack.enter_context(Parts(self._run_file, self._directory, self._checkpoint))
                for doubt in (job.ask_for_patience(self._run_file.deadlines), parts.crowded):
                    if doubt:
                        self._journal.warn(doubt)
            targets = self._directory.scrape_targets
            stack.enter_context(exporting(self._journal, parts.export, targets, parts.cluster))
            self._play(parts)
            end.outcome = "stopped" if self._interrupted else "finished"
            end.why = str(self._supervisor.learner.result)
        return end.outcome

    def _play(self, parts: Parts) -> None:
        self._supervisor = Supervisor(parts, self._run_file, self._directory, self._journal, self._asked)
        try:
            with self._phases.phase("start"):
                self._start(parts)
            with self._phases.phase("evaluate"):
                self._evaluate(parts, "before training", wanted=not self._resumed)
            self._train()
            self._phases.seconds["train"] = self._supervisor.ended_at - self._supervisor.began_at
            with self._phases.phase("evaluate"):
                self._evaluate(parts, "after training", wanted=not self._interrupted)
            with self._phases.phase("end"):
                self._end(parts)
        finally:
            everybody = (*parts.members, *parts.left)
            pids = {int(member.facts["pid"]) for member in everybody if "pid" in member.facts}
            self._peaks = {member.name: member.peak_rss for member in everybody}
            self._peaks |= beside_actors(run_id_of(self._directory), pids)
            self._tokens = token_account(everybody)

    @property
    def _interrupted(self) -> bool:
        """A signal ended the training; one that came later only shortens the end."""
        return self._supervisor.stopped_by_signal

    # --- the phases ---------------------------------------------------------------------------------

    def _start(self, parts: Parts) -> None:
        """Until every engine answers and the first weights are published."""
        deadline = self._run_file.deadlines.start
        prepared = False
        while not prepared:
            wait_until_ready(parts.members, deadline, self._show_and_heed, self._begins_again)
            prepared = parts.learners_prepared(self._show_and_heed)
            for rank in parts.learners:
                rank.poll(deadline)  # which says who is gone, if one is
        self._journal.enter("starting", "the learner loads and publishes the first weights")
        self._supervisor.steering.tell_again()
        for rank in parts.learners:
            rank.run()
        began = time.monotonic()
        while not self._supervisor.started:
            self._supervisor.tick()
            if time.monotonic() - began > deadline:
                doing = self._supervisor.learner.stats.get("doing")
                raise DeadlinePassed(
                    f"waited {deadline:.0f} s (deadlines.start) for the learner to publish its first weights; it is "
                    f"{doing}. Its log is {self._supervisor.learner.log}"
                )
            time.sleep(0.1)

    def _begins_again(self, member: Member) -> None:
        """An actor's process was killed before everybody was there."""
        self._journal.tell("died", member.cause, name=member.name)
        self._journal.tell("restarted", f"{member.name} is started again", name=member.name)
        self._supervisor.mending.restarts[member.name] = member.restarts + 1

    def _show_and_heed(self) -> None:
        """While everybody starts: whoever asks for something is answered, and not left to wait for the first tick."""
        if self._asked:
            raise KeyboardInterrupt
        self._supervisor.steering.look()
        self._journal.show((), None)

    def _train(self) -> None:
        self._journal.enter("training")
        if by := self._supervisor.steering.controls.paused_by:
            self._journal.warn(f"the run is paused still, by {by}; `penstock go` lets it go on")
        self._supervisor.until(lambda: self._supervisor.learner.state == "ended")
        self._supervisor.hear_the_end(self._run_file.deadlines.drain)
        self._supervisor.tick()

    def _evaluate(self, parts: Parts, when: str, wanted: bool) -> None:
        if parts.evaluation is None or not wanted:
            return
        self._journal.enter("evaluating", when)
        version = self._journal.version
        self._supervisor.until(lambda: self._supervisor.evaluating.possible or self._nobody_evaluates)
        if not self._nobody_evaluates:
            pending = evaluations.Pending(replace(parts.evaluation, version=version), lambda: parts.workers)
            found = evaluations.wait(pending, self._supervisor.tick, lambda: self._nobody_evaluates)
            if found is not None:
                self._supervisor.evaluated(*found)
        if self._nobody_evaluates and not self._asked:
            self._journal.warn(f"nothing is evaluated {when}: the run was scaled to no rollout worker")
        self._supervisor.evaluating.release(version)

    @property
    def _nobody_evaluates(self) -> bool:
        """There is no time for it, or no worker is wanted that could: by a person, or since the last was given up."""
        return bool(self._asked) or self._supervisor.scaling["rollout"].wanted == 0

    def _end(self, parts: Parts) -> None:
        """Workers hand back what they hold; for good when the run is over, for a resume when it was interrupted."""
        self._journal.enter("draining", "workers hand back what is unfinished")
        if self._run_file.recording.plots:
            self._drawing.begin()
        self._supervisor.steering.close()
        running = [worker for worker in parts.workers if worker.state == "running"]
        for worker in running:
            worker.handle.request_drain.remote()
        deadline = time.monotonic() + self._run_file.deadlines.drain
        while any(worker.state == "running" for worker in running) and time.monotonic() < deadline:
            self._supervisor.keep_store()
            for worker in running:
                worker.poll(self._run_file.deadlines.start)
            self._supervisor.steering.close()
            time.sleep(0.1)
        late = [worker.name for worker in running if worker.state == "running"]
        if late:
            seconds = f"{self._run_file.deadlines.drain:g} s (deadlines.drain)"
            self._journal.event("warning", f"{', '.join(late)} did not drain within {seconds} and is ended")
        self._supervisor.mending.store()
        if not self._interrupted:
            parts.host.surely(lambda store: store.drain(ENDED_BY_LIMIT))
        self._supervisor.ledger = parts.host.surely(lambda store: store.counts())
        self._journal.show(parts.members, self._supervisor.ledger)

    # --- the summary --------------------------------------------------------------------------------

    def _conclude(self, end: Ending) -> None:
        ledger = self._supervisor.ledger if hasattr(self, "_supervisor") else None
        if hasattr(self, "_supervisor"):
            self._supervisor.guardian.close()
        rows = read_rows(self._directory.metrics)
        self._directory.write_summary(self._summary(end, ledger, rows))
        if self._run_file.recording.plots and rows and (trouble := self._drawing.finish()):
            self._journal.event("warning", trouble)
        message = end.why
        if end.outcome != "finished" and checkpoints.latest(self._directory.checkpoints) is not None:
            message += f"; go on with: penstock resume {self._directory.path}"
        self._journal.enter(end.outcome, message)
        self._journal.show((), ledger)
        self._journal.close()

    def _summary(self, end: Ending, ledger: LedgerCounts | None, rows: Sequence[dict[str, float]]) -> dict[str, Any]:
        trained = self._journal.version.step - self._journal.first_step
        seconds = self._phases.seconds.get("train", 0.0)
        mine = [row for row in rows if row["step"] > self._journal.first_step]
        tokens = sum(row.get("batch/tokens", 0.0) for row in mine)
        return {
            "outcome": end.outcome,
            "why": end.why,
            "version": str(self._journal.version),
            "steps": self._journal.version.step,
            "steps_of_this_start": trained,
            "seconds": {name: round(value, 2) for name, value in self._phases.seconds.items()},
            "evaluation": first_and_last(rows, "eval/"),
            "tokens": {
                "trained": tokens,
                "trained_per_second": tokens / seconds if seconds else None,
                "sampled_per_second": over_steps(mine, "rollout/tokens_per_second", "rollout/tokens_per_second")[
                    "mean"
                ],
                "at_workers": self._tokens,
            },
            "lag": over_steps(rows, "off_policy/mean", "off_policy/max"),
            "max_lag": self._run_file.staleness.model_dump()["max_lag"],
            "ledger": ledger_summary(ledger),
            "restarts": self._supervisor.mending.restarts if hasattr(self, "_supervisor") else {},
            "peak_memory_bytes": self._peaks,
            "peak_memory_sum_bytes": sum(self._peaks.values()),
            "goals": [vars(report) for report in judge(self._run_file.goals, rows)],
            "seeds": {
                "run": self._run_file.seed,
                "data": self._run_file.data.seed,
                "learner": self._run_file.learner.seed,
                "engine": self._run_file.engine.seed,
            },
            "libraries": library_versions(),
        }


def require_more_to_do(run_file: RunFile, directory: RunDir) -> None:
    """Raises RunDirError for a run that has ended and whose limits are reached; nothing of it is touched then.

    One that died after its last step, before it was evaluated or had its summary, is brought to its end."""
    latest = checkpoints.read(_latest(directory))
    over = plans.step_limits(run_file)(latest.version.step, latest.tokens)
    if over and (directory.read_summary() or {}).get("outcome") == "finished":
        raise RunDirError(
            f"{directory.path} has ended: {over}. To go on, raise the limit: penstock resume {directory.path} "
            f"limits.steps={latest.version.step + 100}"
        )


def _latest(directory: RunDir) -> Path:
    """The folder of the newest checkpoint. Raises RunDirError when there is none."""
    latest = checkpoints.latest(directory.checkpoints)
    if latest is None:
        raise RunDirError(
            f"{directory.path} has no complete checkpoint to go on from (fine-tuning writes none); start anew with "
            "penstock train or penstock sft"
        )
    return latest.folder
