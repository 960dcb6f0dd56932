"""The guards of a run at work: they see what is measured, and what they do goes the way of every other command."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from penstock.deploy.guards.config import ActionSection, GuardSection, named
from penstock.deploy.guards.watch import Firing, Watch
from penstock.deploy.guards.webhook import Webhooks
from penstock.deploy.journal import Journal
from penstock.learner.dials import MAX_LAG
from penstock.services.control import (
    Answer,
    Asked,
    Checkpoint,
    Command,
    Gate,
    Pause,
    RollBack,
    ScaleCoefficient,
    SetCoefficient,
    SetMaxLag,
    Stop,
)
from penstock.services.files import write_atomically
from penstock.services.rundir import RunDir, RunDirError

_AGAIN = 10.0
"""Seconds until a gate that could not be opened is tried again."""


class Steers(Protocol):
    """The part of Steering that is needed here."""

    @property
    def coefficients(self) -> Mapping[str, float]: ...

    @property
    def paused(self) -> bool: ...

    def carry_out(self, asked: Asked) -> Answer: ...


@dataclass
class Reopening:
    """When a guard lets the gate go that it has closed; sooner when its condition holds no more."""

    at: float
    again: float = 0.0
    """Not before, since the last attempt was refused."""


class Guardian:
    """`seen` gets what a step has measured, `look` what is measured all the time; `act` does what is due.

    How often each guard has fired is kept in the run directory: bounds on it hold over all starts of a run.
    """

    def __init__(
        self,
        guards: Sequence[GuardSection],
        directory: RunDir,
        journal: Journal,
        steering: Steers,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory, self._journal, self._steering, self._clock = directory, journal, steering, clock
        kept = _read(directory)
        self._watches = [
            Watch(name, guard, *kept.get((name, guard.when), (0, 0))) for name, guard in named(tuple(guards))
        ]
        self._due: list[Firing] = []
        self._webhooks = Webhooks()
        self._reopen: dict[str, Reopening] = {}
        """Of the guards that keep the gate closed."""

    def seen(self, metrics: Mapping[str, float], step: int) -> None:
        """What the step that ended at `step` has measured, or an evaluation of it."""
        self._see(metrics, step, live=False)

    def look(self, metrics: Mapping[str, float], step: int) -> None:
        """What is measured all the time; called once a second. A paused run stands still on purpose."""
        if self._steering.paused:
            for watch in self._watches:
                if watch.live:
                    watch.begin_again(step)
        else:
            self._see(metrics, step, live=True)
        self._tell_failures()
        for watch in self._watches:
            if watch.name in self._reopen and (watch.well or self._clock() >= self._reopen[watch.name].at):
                self._let_go(watch)

    def _tell_failures(self) -> None:
        for failure in self._webhooks.failures():
            self._journal.event("warning", f"a guard's webhook: {failure}")

    def _see(self, metrics: Mapping[str, float], step: int, live: bool) -> None:
        for watch in self._watches:
            if watch.live is live and (firing := watch.see(metrics.get(watch.guard.condition.metric), step)):
                self._due.append(firing)

    @property
    def counts(self) -> dict[str, float]:
        """How often each has fired, as metrics."""
        return {f"guard/{watch.name}": float(watch.fired) for watch in self._watches}

    def begin_again(self, step: int) -> None:
        """The run goes on from another step. What is due was asked for by what has been given up."""
        due, self._due = self._due, []
        for firing in due:
            self._tell(firing, ["nothing: the run went back meanwhile"])
        for watch in self._watches:
            watch.begin_again(step)

    def act(self) -> None:
        """Do what is due. What is refused is an event, and the next action is done all the same."""
        due, self._due = self._due, []
        for firing in due:
            did = self._exhausted(firing) if firing.what == "exhausted" else self._do(firing)
            self._tell(firing, did)
        if due:
            self._keep()

    def close(self) -> None:
        """Send what still waits to be sent."""
        self._webhooks.close()
        self._tell_failures()

    # --- what is done -------------------------------------------------------------------------------

    def _do(self, firing: Firing) -> list[str]:
        by = f"guard {firing.name}"
        did = []
        for action in firing.guard.do:
            command = command_of(action, firing, self._steering.coefficients)
            if isinstance(command, str):
                did.append(command)
                continue
            answer = self._ask(command, by)
            did.append(answer.text if answer.done else f"{action} was refused: {answer.text}")
            if action.gate is not None and answer.done and action.minutes is not None:
                until = self._clock() + 60 * action.minutes
                before = self._reopen.get(firing.name)
                self._reopen[firing.name] = Reopening(max(until, before.at if before else 0.0))
        return did

    def _let_go(self, watch: Watch) -> None:
        """Of the gate that it keeps closed, since the time for it is over, or its metric is well."""
        reopening, guard = self._reopen[watch.name], watch.guard
        if self._clock() < reopening.again:
            return
        answer = self._ask(Gate(open=True), f"guard {watch.name}")
        if not answer.done:
            reopening.again = self._clock() + _AGAIN
            return
        del self._reopen[watch.name]
        why = f"{guard.when} holds no more" if watch.well else "its minutes are over"
        self._journal.event("reopened", f"guard {watch.name}: {why}: {answer.text}", name=watch.name)

    def _exhausted(self, firing: Firing) -> list[str]:
        times = "once" if firing.guard.most == 1 else f"{firing.guard.most} times"
        often = f"it has fired {times}, as often as it may"
        end = firing.guard.at_the_end
        if end == "warn":
            return [often]
        command = Pause() if end == "pause" else Stop(f"guard {firing.name}: {often}, and {firing.guard.when} again")
        return [often, self._ask(command, f"guard {firing.name}").text]

    def _ask(self, command: Command, by: str) -> Answer:
        return self._steering.carry_out(Asked(uuid.uuid4().hex, by, self._clock(), command))

    def _tell(self, firing: Firing, did: list[str]) -> None:
        guard, name = firing.guard, firing.name
        held = f" {guard.needed} times in a row" if guard.needed > 1 else ""
        text = f"guard {name}: {guard.when}{held}, found {firing.value:.4g}: {'; '.join(did)}"
        facts: dict[str, Any] = {
            "name": name,
            "when": guard.when,
            "value": firing.value,
            "step": firing.step,
            "what": firing.what,
            "did": did,
        }
        self._journal.tell("guard", text, **facts)
        for action in guard.do:
            if action.webhook is not None:
                run = {"run": self._directory.path.name, "guard": name, "text": text, "at": self._clock()}
                self._webhooks.send(action.webhook, run | facts)

    def _keep(self) -> None:
        kept = {watch.name: [watch.guard.when, watch.fired, watch.rest] for watch in self._watches}
        write_atomically(self._directory.guards, json.dumps(kept).encode())


def command_of(action: ActionSection, firing: Firing, now: Mapping[str, float]) -> Command | str:
    """The command that an action comes to, or what there is to say where it is none."""
    if action.scale is not None and action.by is not None:
        return ScaleCoefficient(action.scale, action.by, action.at_least, action.at_most)
    if action.set is not None and action.to is not None:
        return SetCoefficient(action.set, action.to)
    if action.max_lag is not None:
        return _bounded(action, int(now[MAX_LAG]))
    if action.gate is not None:
        return Gate(open=False)
    if action.webhook is not None:
        return "a webhook is told"
    commands: dict[str | None, Command] = {
        "checkpoint": Checkpoint(),
        "pause": Pause(),
        "stop": Stop(f"guard {firing.name}: {firing.guard.when}, found {firing.value:.4g}"),
        "roll_back": RollBack(until=firing.since),
    }
    return commands.get(action.then, "this is a warning")


def _bounded(action: ActionSection, bound: int) -> Command | str:
    """Moved by some steps, no further than its ends; one that lies beyond an end is not thrown back."""
    steps = int(action.by or 1)
    if action.max_lag == "open":
        moved = max(bound, min(bound + steps, int(action.at_most or 0)))
    else:
        moved = min(bound, max(bound - steps, int(action.at_least or 0)))
    return SetMaxLag(moved) if moved != bound else f"max_lag stays at {bound}, its end"


def _read(directory: RunDir) -> dict[tuple[str, str], tuple[int, int]]:
    """By name and condition how often a guard had fired, and how many measurements more it was not to look at."""
    if not directory.guards.exists():
        return {}
    try:
        kept = json.loads(directory.guards.read_text())
        return {(name, str(when)): (int(fired), int(rest)) for name, (when, fired, rest) in kept.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RunDirError(f"{directory.guards} is damaged: {error}; without it, every guard counts from 0") from error
