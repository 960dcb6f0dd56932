"""A learner that lost a rank begins again from the newest checkpoint, while the rest of the run goes on.

The ranks hold parts of one state, so all of them are started again. What follows is what `penstock resume` does: the
checkpoint is loaded, the ledger opens a new lineage, what the lost steps had used is delivered again. Workers generate
meanwhile, as far as the gate lets them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import ray
import ray.exceptions

from penstock.deploy.blame import Blame, Deaths, Fault
from penstock.deploy.fleet import ActorLost, Member
from penstock.deploy.journal import Journal
from penstock.deploy.parts import Parts
from penstock.deploy.runfile import RunFile
from penstock.learner import checkpoints
from penstock.services.contracts import DeadlinePassed
from penstock.services.rundir import RunDir


class Recovery:
    """Looks at the learner's ranks once per tick, and never waits.

    What a rank raises by itself (gradients that stay undefined, nothing to train on, a disk that is full) would come
    again, and ends the run. A process that died or fell silent, lost contact, and what torch raises is tried again,
    `learner.max_restarts` times without a new checkpoint in between.
    """

    def __init__(self, parts: Parts, run_file: RunFile, journal: Journal, restarts: dict[str, int]) -> None:
        """`restarts` counts, by name, whoever was started again."""
        self._parts, self._run_file, self._journal, self._restarts = parts, run_file, journal, restarts
        self.stage: Literal["", "starting", "preparing", "loading"] = ""
        """How far the ranks are that were started again; empty while there are none."""
        self._attempts = 0
        self._from: Path | None = None
        self._since = 0.0
        self._blame = Blame(run_file.deadlines.blame)
        self._answers: list[ray.ObjectRef[object]] = []

    def look(self, started: bool) -> bool:
        """True when fresh ranks have been told what to do and are let go: whoever asked something of the ones before
        asks again. Raises ActorLost when the run cannot go on, DeadlinePassed when a start takes too long. Until the
        learner has `started` for the first time there is nothing to go on from."""
        if self._ranks[0].state == "ended":
            return False  # all is done and saved
        if any(member.state == "dead" for member in self._ranks):
            if deaths := self._blame.find(self._ranks):
                self._mourn(deaths, started)
        elif self.stage == "starting" and all(member.state == "ready" for member in self._ranks):
            self.stage, self._answers = "preparing", self._parts.prepare_learning(self._from)
        elif self.stage == "preparing" and self._prepared():
            self.stage = "loading"
            return True
        if self.stage and time.monotonic() - self._since > self._run_file.deadlines.start:
            raise DeadlinePassed(
                f"waited {self._run_file.deadlines.start:.0f} s (deadlines.start) for the learner, which was started "
                f"again, to publish its weights; it is {self._doing}. Its log is {self._ranks[0].log}"
            )
        return False

    def excuse(self, seconds: float) -> None:
        """So long the driver did not move: that is no time to start in, and none to explain a death in."""
        self._since += seconds
        self._blame.excuse(seconds)

    def begun(self) -> None:
        """The learner has published its weights and trains."""
        took, where = time.monotonic() - self._since, self._from.name if self._from else "the beginning"
        self.stage = ""
        self._journal.tell(
            "restarted",
            f"the learner goes on from {where}, {took:.1f} s after it was lost",
            name="learner",
            seconds=took,
        )

    @property
    def _ranks(self) -> list[Member]:
        return self._parts.learners

    @property
    def _doing(self) -> str:
        states = {member.name: str(member.stats.get("doing", member.state)) for member in self._ranks}
        return ", ".join(f"{name}: {state}" for name, state in states.items())

    def _mourn(self, deaths: Deaths, started: bool) -> None:
        """Say what happened, and start all ranks again or give the run up."""
        for member in deaths.dead:
            self._journal.tell("died", member.cause, name=member.name)
        if not started or deaths.fault is Fault.OWN:
            raise ActorLost(f"{deaths.first.cause}\n  {self._journal.how_to_go_on}")
        self._begin(deaths.first.cause)

    def _begin(self, cause: str) -> None:
        latest = checkpoints.latest(RunDir(self._journal.run_dir).checkpoints)
        folder, most = latest.folder if latest else None, self._run_file.learner.max_restarts
        self._attempts = self._attempts + 1 if folder == self._from else 1
        if self._attempts > most:
            again = f"it was started again {most} times without a new checkpoint (learner.max_restarts)"
            raise ActorLost(f"{cause}\n  {again}; {self._journal.how_to_go_on}" if most else f"{cause}\n  {again}")
        self._from, self._since, self.stage = folder, time.monotonic(), "starting"
        for member in self._ranks:
            member.launch()
            self._restarts[member.name] = member.restarts
        where = folder.name if folder else "the beginning, since there is no checkpoint yet"
        self._journal.tell("restarted", f"the learner's ranks are started again, from {where}", name="learner")

    def _prepared(self) -> bool:
        """Whether every rank knows its part. A rank that died instead is seen at the next look."""
        there, missing = ray.wait(self._answers, num_returns=len(self._answers), timeout=0)
        if missing:
            return False
        try:
            ray.get(there)
        except ray.exceptions.RayTaskError as error:
            raise ActorLost(f"the learner could not be told to begin again: {error.cause or error}") from error
        except ray.exceptions.RayError:
            return False
        return True
