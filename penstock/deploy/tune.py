"""A run of supervised fine-tuning: ranks, progress, a model in the run directory."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from typing import Any

from penstock.deploy import job, plans
from penstock.deploy.blame import Blame, Fault
from penstock.deploy.cluster import Cluster
from penstock.deploy.desk import desk
from penstock.deploy.ending import Ending, ending, tenure
from penstock.deploy.fleet import ActorLost, Member, wait_until_ready
from penstock.deploy.journal import Journal
from penstock.deploy.learners import prepare_tuning, start_rank
from penstock.deploy.nodes import Ground, inputs_of, look_around, require_common_ground
from penstock.deploy.page import Page, beside
from penstock.deploy.placement import place
from penstock.deploy.polling import Polling
from penstock.deploy.runfile import RunFile
from penstock.deploy.signals import Interruption
from penstock.deploy.silence import end_the_silent
from penstock.deploy.stacks import where_they_stand
from penstock.deploy.storehost import run_id_of
from penstock.deploy.summary import Phases, first_and_last, library_versions
from penstock.deploy.supervisor import TICK
from penstock.deploy.view import Display, Phase
from penstock.deploy.watching import exporting
from penstock.learner.stages.tuner import SftPlan
from penstock.services.contracts import DeadlinePassed
from penstock.services.metrics import read_rows
from penstock.services.rundir import RunDir
from penstock.services.tracking.feeds import Feeds, trackers
from penstock.services.versions import Version


def tune(run_file: RunFile, directory: RunDir, display: Display | None = None) -> None:
    """Fine-tune as the `sft` section says; the model lands in the run directory.

    Raises PenstockError with the cause when the run fails, and KeyboardInterrupt after a signal.
    """
    with tenure(directory) as held, beside(run_file.dashboard, directory) as page:
        held.outcome = _Tuning(run_file, directory, display, held.asked, page).go()


class _Tuning:
    def __init__(
        self, run_file: RunFile, directory: RunDir, display: Display | None, asked: Interruption, page: Page | None
    ) -> None:
        self._run_file, self._directory, self._asked = run_file, directory, asked
        feeds = Feeds(list(trackers(run_file.tracking, directory, run_id_of(directory))))
        self._journal = Journal(directory, run_file.name, run_file.recording, run_file.limits, display, feeds)
        self._journal.serve(page)
        self._export = plans.export(run_file, directory)
        self._phases = Phases()

    def go(self) -> Phase:
        """The whole stage; returns how it ended."""
        with ending(self._conclude, self._asked, self._directory.path) as end:
            end.why = self._play()
            end.outcome = "stopped" if self._asked else "finished"
        return end.outcome

    def _play(self) -> str:
        run_file = self._run_file
        ranks = run_file.sft.ranks
        self._journal.enter("starting", "Ray and the ranks of fine-tuning")
        run_id = run_id_of(self._directory)
        every = self._export.seconds if self._export else None
        with ExitStack() as stack:
            with self._phases.phase("start"):
                cluster = Cluster(run_file.placement.ray_address, run_id, ranks, every)
                stack.callback(cluster.close)
                if cluster.joined:
                    stack.enter_context(desk(self._directory, run_id))
                if doubt := job.ask_for_patience(run_file.deadlines):
                    self._journal.warn(doubt)
                looks = look_around(self._ground(run_id)) if cluster.nodes > 1 else []
                placement = place(run_file, workers=0, ranks=ranks, scorers=0)
                members = [self._member(rank, placement.options("learner")) for rank in range(ranks)]
                require_common_ground(looks, self._directory, run_file.deadlines.answer)
                wait_until_ready(members, run_file.deadlines.start, self._heed)
                prepare_tuning([member.handle for member in members], self._plan(), run_file.deadlines.start)
            targets = self._directory.scrape_targets
            with self._phases.phase("train"), exporting(self._journal, self._export, targets, cluster):
                return self._follow(members)

    def _member(self, rank: int, options: dict[str, Any]) -> Member:
        name = f"sft-{rank}"
        log = self._directory.log(name)
        start = partial(start_rank, name, log, options, self._run_file.algorithm.folder, self._export)
        member = Member(name, "learner", log, start)
        member.launch()
        return member

    def _ground(self, run_id: str) -> Ground:
        return Ground(self._directory.path, run_id, inputs=inputs_of(self._run_file))

    def _plan(self) -> SftPlan:
        run_file = self._run_file
        return SftPlan(
            model=run_file.model,
            data=run_file.data,
            sft=run_file.sft,
            meet_at="",
            model_folder=self._directory.model,
            seed=run_file.seed,
            threads=run_file.placement.learner_threads,
        )

    def _heed(self) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._journal.show((), None)

    def _follow(self, members: list[Member]) -> str:
        """Until rank 0 has ended, which it does after all have come to the end; returns why."""
        deadlines = self._run_file.deadlines
        self._journal.enter("starting", "the ranks load model and data")
        self._journal.begin(Version(0, 0))
        for member in members:
            member.run()
        began, told = time.monotonic(), False
        polling, blame = Polling(TICK, deadlines.silence), Blame(deadlines.blame)
        while members[0].state != "ended":
            polling.look(members, (), deadlines.start)
            blame.excuse(polling.away)
            began += polling.away
            self._mourn(blame, members)
            if self._asked and not told:
                members[0].handle.request_stop.remote(f"interrupted by {self._asked.name}")
                told = True
            self._record(members[0])
            self._journal.show(members, None)
            if self._journal.phase == "training":
                end_the_silent(members, deadlines.silence)
            elif time.monotonic() - began > deadlines.start:
                raise DeadlinePassed(
                    f"waited {deadlines.start:.0f} s (deadlines.start) for the first update of fine-tuning: "
                    + ", ".join(f"{member.name} is {member.stats.get('doing', member.state)}" for member in members)
                )
            time.sleep(TICK)
        if missing := members[0].last_words(deadlines.drain):
            self._journal.warn(missing, name=members[0].name)
        self._record(members[0])
        return str(members[0].result)

    def _mourn(self, blame: Blame, members: list[Member]) -> None:
        """Raises ActorLost with the death that explains the others'; of a rank that only missed others, with those that
        do not answer."""
        deaths = blame.find(members)
        if deaths is None or members[0].state == "ended":  # then the model is written, whatever becomes of the others
            return
        for member in deaths.dead:
            self._journal.tell("died", member.cause, name=member.name)
        alive = {member.name: member.handle for member in members if member.state == "running"}
        missed = deaths.fault in (Fault.CONTACT, Fault.TORCH)
        hang = sorted(alive.keys() - where_they_stand(alive)) if missed else []
        said = "".join(f"\n  {name} does not answer; its log is {self._directory.log(name)}" for name in hang)
        raise ActorLost(f"{deaths.first.cause}{said}")

    def _record(self, leader: Member) -> None:
        for report in leader.read_inbox():
            if self._journal.phase != "training":
                self._journal.enter("training", "supervised fine-tuning")
            self._journal.total = report["steps"]
            self._journal.step(Version(0, report["step"]), report["metrics"], [], report["at"])

    def _conclude(self, end: Ending) -> None:
        rows = read_rows(self._directory.metrics)
        self._directory.write_summary(
            {
                "outcome": end.outcome,
                "why": end.why,
                "stage": "sft",
                "steps": self._journal.version.step,
                "seconds": {name: round(value, 2) for name, value in self._phases.seconds.items()},
                "loss": first_and_last(rows, "sft/loss"),
                "seeds": {"run": self._run_file.seed, "sft": self._run_file.sft.seed},
                "libraries": library_versions(),
            }
        )
        self._journal.enter(end.outcome, end.why)
        self._journal.show((), None)
        self._journal.close()
