"""Carries out what is asked of a run while it goes on; every command leaves an event with who asked and what for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import ray.exceptions

from penstock.deploy.fleet import Member
from penstock.deploy.journal import Journal
from penstock.deploy.scaling import Scaling
from penstock.deploy.view import Controls
from penstock.deploy.wishes import Wishes, paused_by
from penstock.learner import checkpoints
from penstock.learner.dials import MAX_LAG, Dials
from penstock.services.contracts import PenstockError, StoreError
from penstock.services.control import (
    Answer,
    Asked,
    Checkpoint,
    Gate,
    Pause,
    Refused,
    Remove,
    Resume,
    RollBack,
    ScalableRole,
    Scale,
    ScaleCoefficient,
    SetCoefficient,
    SetMaxLag,
    Stop,
)
from penstock.services.mailbox import Mailbox
from penstock.services.rundir import RunDir

_EARLY = ". A run that is starting can be scaled, and ended by Ctrl-C or `ray job stop`"


@dataclass(frozen=True)
class Levers:
    """What Steering pulls, besides the actors."""

    stop: Callable[[str], None]
    """Ends the run after its step, for the reason given."""
    hold: Callable[[bool], None]
    """Closes the ledger's gate, or leaves it to the lag. Raises StoreError when the store is away."""
    bound_lag: Callable[[int], None]
    """Bounds the lag at the ledger and at every worker. Raises StoreError when the store is away."""


class Steering:
    """The driver's ear. `look` carries out what has been asked since the last time, and never waits for an actor."""

    def __init__(
        self,
        directory: RunDir,
        journal: Journal,
        scaling: Mapping[ScalableRole, Scaling],
        learner: Callable[[], Member],
        levers: Levers,
        dials: Dials,
    ) -> None:
        self._directory, self._journal, self._scaling = directory, journal, scaling
        self._mailbox = Mailbox(directory)
        self._learner, self._levers, self._dials = learner, levers, dials
        self._wishes = Wishes()
        # A pause is for a person to end: a driver that was killed, or whose machine was taken away, has not.
        self._wishes.paused_by = paused_by(directory.read_events())
        self._unsettled = False
        self._ways: dict[type[Any], Callable[[Any, str], str]] = {
            Scale: self._scale,
            Remove: self._remove,
            Pause: self._pause,
            Resume: self._go_on,
            Checkpoint: self._checkpoint,
            Gate: self._gate,
            SetCoefficient: self._set,
            ScaleCoefficient: self._multiply,
            SetMaxLag: self._bound,
            RollBack: self._roll_back,
            Stop: self._end,
        }
        self._mailbox.refuse_left(
            "it was asked of an earlier start of this run, or while this one could not listen yet; ask again"
        )

    # --- for the supervisor -------------------------------------------------------------------------

    def look(self) -> None:
        """Carry out what has been asked."""
        self._settle()
        self._mailbox.serve(self.carry_out)

    def close(self) -> None:
        """The run is over: say so to whoever is still asking."""
        self._mailbox.refuse_left("the run is ending; nothing can be changed any more")

    def learned(self, coefficients: Mapping[str, float], heard: int) -> None:
        """Where the learner says its coefficients are, and up to which of the requests it has heard."""
        self._wishes.learned(coefficients, heard)

    def begun(self, coefficients: Mapping[str, float], heard: int) -> None:
        """The learner has begun, or has begun again from a checkpoint. The ledger's gate is open then, whatever had
        been asked for, and after a start its bound is the run file's."""
        self.learned(coefficients, heard)
        self._unsettled = True
        self._settle()

    def tell_again(self) -> None:
        """A learner is about to run, and knows nothing of what was asked of the one before it: of one that was lost, or
        of that of an earlier start, which was paused."""
        learner = self._learner()
        if self._wishes.paused_by:
            learner.handle.request_pause.remote(True, self._wishes.numbered())
        if turned := self._wishes.again():
            learner.handle.request_turn.remote(*turned)

    def _settle(self) -> None:
        """Tell the ledger again what holds. A store that is away is told at the next look."""
        if not self._unsettled:
            return
        bound = int(self._wishes.coefficients.get(MAX_LAG, self._dials.start[MAX_LAG]))
        with contextlib.suppress(StoreError):
            if bound != self._dials.start[MAX_LAG]:
                self._levers.bound_lag(bound)
            if self._wishes.held:
                self._levers.hold(True)
            self._unsettled = False

    @property
    def coefficients(self) -> Mapping[str, float]:
        """Every coefficient that may be turned, as the next step takes it."""
        return self._wishes.coefficients

    @property
    def paused(self) -> bool:
        return bool(self._wishes.paused_by)

    @property
    def controls(self) -> Controls:
        """For people."""
        return Controls(self._wishes.paused_by, not self._wishes.closed_by, self._wishes.coefficients)

    def carry_out(self, asked: Asked) -> Answer:
        """Do it, or say why not; nothing that is asked may end the run but `Stop`."""
        facts = {
            "by": asked.by,
            "asked": msgspec.to_builtins(asked.command),
            "at": asked.at,
            "step": self._journal.version.step,
        }
        try:
            text = self._ways[type(asked.command)](asked.command, asked.by)
        except (PenstockError, ray.exceptions.RayError) as error:  # Ray's head may be away for a while
            self._journal.event("refused", f"{asked.by}: {error}", **facts)
            return Answer(False, str(error))
        self._journal.tell("steered", f"{asked.by}: {text}", **facts)
        return Answer(True, text)

    # --- the ways -----------------------------------------------------------------------------------

    def _scale(self, command: Scale, _: str) -> str:
        return self._scaling[command.role].ask(command.count)

    def _remove(self, command: Remove, _: str) -> str:
        for scaling in self._scaling.values():
            if scaling.has(command.name):
                return scaling.remove(command.name)
        there = ", ".join(m.name for scaling in self._scaling.values() for m in scaling.staying) or "nobody"
        raise Refused(f"there is no worker or scorer {command.name!r} that could leave; there are: {there}")

    def _pause(self, _: Pause, by: str) -> str:
        learner = self._training()
        if self._wishes.paused_by:
            raise Refused(f"the run is paused already, by {self._wishes.paused_by}; `penstock go` lets it go on")
        self._levers.hold(True)
        learner.handle.request_pause.remote(True, self._wishes.numbered())
        self._wishes.paused_by = by
        return "paused: no new prompts and no new train step; `penstock go` lets the run go on"

    def _go_on(self, _: Resume, __: str) -> str:
        learner = self._training()
        if not self._wishes.paused_by:
            raise Refused("the run is not paused")
        closed = self._wishes.closed_by
        self._levers.hold(bool(closed))
        learner.handle.request_pause.remote(False, self._wishes.numbered())
        self._wishes.paused_by = ""
        return "the run goes on" + (f"; its gate is still closed by {', '.join(closed)}" if closed else "")

    def _gate(self, command: Gate, by: str) -> str:
        self._training()
        before = list(self._wishes.closed_by)
        (self._wishes.open if command.open else self._wishes.close)(by)
        try:
            self._levers.hold(self._wishes.held)
        except StoreError:
            self._wishes.closed_by = before
            raise
        if not command.open:
            return "the gate is closed: no new prompts; what is being generated and what is stored goes on"
        if left := self._wishes.closed_by:
            return f"the gate stays closed, by {', '.join(left)}"
        return "the gate is left to the lag again" + (", once the run goes on" if self._wishes.paused_by else "")

    def _checkpoint(self, _: Checkpoint, __: str) -> str:
        self._training().handle.request_checkpoint.remote()
        return "a checkpoint is written at the end of the step that is under way"

    def _set(self, command: SetCoefficient, _: str) -> str:
        return self._turn(dict.fromkeys(self._known(command.name), command.value))

    def _multiply(self, command: ScaleCoefficient, _: str) -> str:
        self._training()
        low = command.at_least if command.at_least is not None else -float("inf")
        high = command.at_most if command.at_most is not None else float("inf")
        now = {name: self._wishes.coefficients[name] for name in self._known(command.name)}
        # One that lies beyond a bound already may come back, and is not thrown back.
        low, high = min(low, *now.values()), max(high, *now.values())
        return self._turn({name: min(high, max(low, value * command.by)) for name, value in now.items()})

    def _known(self, word: str) -> tuple[str, ...]:
        names = self._dials.find(word)
        if MAX_LAG in names:
            raise Refused("max_lag is bounded at the ledger too, and has a command of its own")
        return names

    def _turn(self, changes: dict[str, float]) -> str:
        learner, before = self._training(), self._wishes.coefficients
        for name, value in changes.items():
            self._dials.check(name, value)
        said = ", ".join(f"{name} {before[name]:.4g} → {value:.4g}" for name, value in changes.items())
        learner.handle.request_turn.remote(changes, self._wishes.turn(changes))
        return f"{said}, from the next train step on"

    def _bound(self, command: SetMaxLag, _: str) -> str:
        learner, before = self._training(), int(self._wishes.coefficients[MAX_LAG])
        self._dials.check(MAX_LAG, command.bound)
        self._levers.bound_lag(command.bound)
        changes = {MAX_LAG: float(command.bound)}
        learner.handle.request_turn.remote(changes, self._wishes.turn(changes))
        return f"max_lag {before} → {command.bound}"

    def _roll_back(self, command: RollBack, _: str) -> str:
        learner, now = self._training(), self._journal.version
        step, until = now.step, now.step if command.until is None else command.until
        there = sorted({found.version.step for found in checkpoints.find(self._directory.checkpoints)})
        if not there or there[0] > until:
            kept = f"the kept ones are of steps {', '.join(map(str, there))}" if there else "none has been written yet"
            raise Refused(f"there is no checkpoint of step {until} or before to go back to: {kept}")
        learner.handle.request_roll_back.remote(until, now.lineage)
        return f"the run goes back from step {step} to its newest checkpoint of step {until} or before"

    def _end(self, command: Stop, _: str) -> str:
        self._training()
        self._levers.stop(f"stopped: {command.why}")
        return "the run ends after the step that is under way, with a checkpoint and a summary"

    def _training(self) -> Member:
        """Rank 0, while it trains. Raises Refused."""
        learner = self._learner()
        early = _EARLY if learner.state in ("starting", "ready") else ""
        if learner.state != "running":
            raise Refused(f"the learner is not training: it is {learner.view().state}{early}")
        if not self._wishes.coefficients:
            raise Refused(f"the learner has not begun yet: it has not published its first weights{_EARLY}")
        return learner
