"""Drills for measurements: whole runs without an engine, and somebody beside them who looks on and acts."""

from __future__ import annotations

import contextlib
import runpy
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import penstock
from penstock.api import Run
from penstock.deploy.view import RunView
from penstock.services.contracts import PenstockError
from penstock.services.control import Stop
from penstock.services.mailbox import MailboxControl
from penstock.services.rundir import RunDir

RECIPE = Path(__file__).parent.parent / "recipes" / "drill"


def inputs_in(folder: Path) -> list[str]:
    """Overrides that name a drill's model and sums, made in `folder` unless they are there."""
    if not (folder / "sums.jsonl").exists():
        runpy.run_path(str(RECIPE / "prepare.py"))["prepare"](folder)
    return [f"model.path={folder / 'model'}", f"data.sources.sums.path={folder / 'sums.jsonl'}", f"runs_dir={folder}"]


class Onlooker:
    """Sees what a person would see, and steers as a person would."""

    def __init__(self) -> None:
        self.view: RunView | None = None
        self.directory: RunDir
        self.control: MailboxControl

    def update(self, view: RunView) -> None:
        """Called by the driver about once a second."""
        if self.view is None:
            self.directory = RunDir.open(view.run_dir)
            self.control = MailboxControl(self.directory)
        self.view = view

    @property
    def step(self) -> int:
        return self.view.step if self.view is not None else -1

    def pid_of(self, name: str) -> int:
        """The process of an actor, as the view has it."""
        assert self.view is not None
        return next(member.pid for member in self.view.workers if member.name == name and member.pid)

    def wait(self, what: str, true: Callable[[], object], deadline: float = 240.0) -> None:
        """Until it is true. Raises TimeoutError."""
        ends = time.monotonic() + deadline
        while not true():
            if time.monotonic() > ends:
                raise TimeoutError(f"waited {deadline:.0f} s until {what}; the last view was {self.view}")
            time.sleep(0.1)

    def names(self, kind: str) -> list[str]:
        """Whom the events of one kind are about, in their order."""
        return [str(event.facts["name"]) for event in self.directory.read_events() if event.kind == kind]

    def joined(self, *names: str) -> None:
        """Wait for these to have joined."""
        self.wait(f"{', '.join(names)} joined", lambda: set(names) <= set(self.names("joined")))

    def delivered(self, *names: str) -> None:
        """Wait for the first groups of these."""
        self.wait(f"{', '.join(names)} delivered", lambda: set(names) <= set(self.names("delivered")))

    def left(self, *names: str) -> None:
        """Wait for these to have left."""
        self.wait(f"{', '.join(names)} left", lambda: set(names) <= set(self.names("left")))


def played(
    run_file: Path,
    overrides: Sequence[str],
    play: Callable[[Onlooker], object],
    start: Callable[..., Run] = penstock.train,
) -> Run:
    """The run that `start` starts, once it has ended; `play` goes on beside it and has to end it. Raises what either
    raised."""
    onlooker, failures = Onlooker(), []

    def body() -> None:
        try:
            onlooker.wait("the run trains", lambda: onlooker.step >= 2)
            play(onlooker)
        except BaseException as error:  # noqa: BLE001  (raised again below)
            failures.append(error)
            if onlooker.view is not None:
                with contextlib.suppress(PenstockError):
                    onlooker.control.send(Stop("whoever was beside it has failed"), "onlooker")

    beside = threading.Thread(target=body, daemon=True)
    beside.start()
    run = start(run_file, list(overrides), display=onlooker)
    beside.join(30)
    if failures:
        raise failures[0]
    return run
