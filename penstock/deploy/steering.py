"""Carries out what is asked of a run while it goes on; every command leaves an event with who asked and what for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from penstock.deploy.fleet import Member
from penstock.deploy.journal import Journal
from penstock.deploy.scaling import Scaling
from penstock.services.contracts import PenstockError
from penstock.services.control import Answer, Asked, Checkpoint, Gate, Refused, Remove, ScalableRole, Scale, Stop
from penstock.services.mailbox import Mailbox


class Steering:
    """The driver's ear. `look` carries out what has been asked since the last time, and never waits for an actor."""

    def __init__(
        self,
        mailbox: Mailbox,
        journal: Journal,
        scaling: Mapping[ScalableRole, Scaling],
        learner: Callable[[], Member],
        stop: Callable[[str], None],
        hold: Callable[[bool], None],
    ) -> None:
        """`stop` ends the run after its step, for the reason given; `hold` closes the ledger's gate, or opens it."""
        self._hold = hold
        self._mailbox, self._journal, self._scaling = mailbox, journal, scaling
        self._learner, self._stop = learner, stop
        self._ways: dict[type[Any], Callable[[Any], str]] = {
            Scale: self._scale,
            Remove: self._remove,
            Checkpoint: self._checkpoint,
            Gate: self._gate,
            Stop: self._end,
        }
        mailbox.refuse_left("it was asked of an earlier start of this run, and the run was started anew since")

    def look(self) -> None:
        """Carry out what has been asked."""
        self._mailbox.serve(self.carry_out)

    def close(self) -> None:
        """The run is over: say so to whoever is still asking."""
        self._mailbox.refuse_left("the run is ending; nothing can be changed any more")

    def carry_out(self, asked: Asked) -> Answer:
        """Do it, or say why not; nothing that is asked may end the run but `Stop`."""
        facts = {"by": asked.by, "asked": msgspec.to_builtins(asked.command), "at": asked.at}
        try:
            way = self._ways.get(type(asked.command))
            if way is None:
                raise Refused(f"{type(asked.command).__name__} cannot be carried out by this stage of a run")
            text = way(asked.command)
        except PenstockError as error:
            self._journal.event("refused", f"{asked.by}: {error}", **facts)
            return Answer(False, str(error))
        self._journal.tell("steered", f"{asked.by}: {text}", **facts)
        return Answer(True, text)

    def _scale(self, command: Scale) -> str:
        return self._scaling[command.role].ask(command.count)

    def _remove(self, command: Remove) -> str:
        for scaling in self._scaling.values():
            if scaling.has(command.name):
                return scaling.remove(command.name)
        there = ", ".join(m.name for scaling in self._scaling.values() for m in scaling.staying) or "nobody"
        raise Refused(f"there is no {command.name!r} that could leave; there are: {there}")

    def _gate(self, command: Gate) -> str:
        self._training()
        self._hold(not command.open)
        if command.open:
            return "the gate is left to the lag again"
        return "the gate is closed: no new prompts; what is being generated and what is stored goes on"

    def _checkpoint(self, _: Checkpoint) -> str:
        self._training().handle.request_checkpoint.remote()
        return "a checkpoint is written at the end of the step that is under way"

    def _end(self, command: Stop) -> str:
        self._training()
        self._stop(f"stopped: {command.why}")
        return "the run ends after the step that is under way, with a checkpoint and a summary"

    def _training(self) -> Member:
        """Rank 0, while it trains. Raises Refused."""
        learner = self._learner()
        if learner.state != "running":
            raise Refused(f"the learner is not training: it is {learner.view().state}")
        return learner
