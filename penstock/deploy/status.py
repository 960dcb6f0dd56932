"""What a run is doing, read from its directory alone: works from any process, also after the run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from penstock.deploy.view import ENDED, RunView
from penstock.services.rundir import RunDir, RunDirError

STALE_SECONDS = 15.0
"""A driver that lives but has not written its status for so long is stuck or starved."""


@dataclass(frozen=True)
class Place:
    """Where a run's own directory is."""

    path: str
    node: str = ""
    """Host name of the node; empty for this machine."""

    def __str__(self) -> str:
        return f"{self.path} on {self.node}" if self.node else self.path


@dataclass(frozen=True)
class Status:
    """One run at one instant."""

    run_dir: Path
    """Where it was read; a copy where the run is elsewhere."""
    view: RunView | None
    """What the driver wrote last; None when it has not written yet."""
    alive: bool
    """The driver holds the run directory's lock."""
    age: float
    """Seconds since the driver wrote."""
    summary: dict[str, Any] | None
    elsewhere: Place | None = None
    """Where the run's own directory is, when `run_dir` is a copy of it."""

    @property
    def place(self) -> Place:
        """Where the run's own directory is."""
        return self.elsewhere or Place(str(self.run_dir))

    @property
    def verdict(self) -> str:
        """One line: running, ended and how, or died without a word."""
        if self.view is None:
            return "starting" if self.alive else "never started; its log is in logs/"
        if self.view.phase in ENDED:
            return f"{self.view.phase}" + (f": {self.view.message}" if self.view.message else "")
        if not self.alive:
            when = f"died while {self.view.phase}, {duration(self.age)} ago"
            return f"{when}; go on with: penstock resume {self.place.path}"
        if self.age > STALE_SECONDS:
            return f"{self.view.phase}, but silent for {duration(self.age)}; see logs/"
        if by := self.view.controls.paused_by:
            return f"{self.view.phase}, paused by {by}; `penstock go` lets it go on"
        held = "" if self.view.controls.gate_open else ", its gate closed by hand; `penstock gate open` opens it"
        return f"{self.view.phase}{held}"


def status(run_dir: Path | str | None = None, runs_dir: Path = Path("runs")) -> Status:
    """Facts about `run_dir`, by default the newest run under `runs_dir`. Raises RunDirError when there is none."""
    return status_of(RunDir.open(run_dir) if run_dir is not None else RunDir.newest(runs_dir))


def status_of(run: RunDir, place: Place | None = None) -> Status:
    """Facts about a run that has been found, whose own directory is at `place` when `run` is a copy of it. Raises
    RunDirError for one of another version of Penstock, and for one that has been deleted meanwhile."""
    try:
        return _status_of(run, place)
    except FileNotFoundError as error:
        raise RunDirError(f"{run.path} is no run directory any more: {error.filename} is gone") from error


def _status_of(run: RunDir, place: Place | None) -> Status:
    run.config.stat()  # the one file that every run has: without it the run was not late to write, it is gone
    written = run.read_status()
    try:
        view = msgspec.convert(written, RunView) if written is not None else None
    except msgspec.ValidationError as error:
        raise RunDirError(f"{run.status} was written by another version of Penstock: {error}") from error
    age = max(0.0, time.time() - run.status.stat().st_mtime) if view is not None else 0.0
    return Status(run.path, view, run.locked, age, run.read_summary(), place)


def as_json(facts: Status) -> dict[str, Any]:
    """The facts as plain values, for scripts and for the page."""
    plain: dict[str, Any] = msgspec.to_builtins({"verdict": facts.verdict, "facts": facts}, enc_hook=str)
    return plain


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`: two units, as people say it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
