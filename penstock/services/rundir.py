"""The run directory: made, found, held by one driver at a time, written and read."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from penstock.services.contracts import PenstockError
from penstock.services.file_lock import FileLock
from penstock.services.files import append_line, whole_lines, write_atomically
from penstock.services.run_paths import STEP_NAME, RunPaths
from penstock.services.versions import Version

_STEP_IN_NAME = re.compile(r"step-(\d+)-lineage-(\d+)")


class RunDirError(PenstockError):
    """No such run directory, one that lacks a part, or one that another driver is using."""


class RunEvent(NamedTuple):
    """One line of `events.jsonl`."""

    at: float
    kind: str
    """A word for machines: started, swapped, restarted, checkpoint, warning, failed, …"""
    message: str
    facts: Mapping[str, Any]

    @classmethod
    def of_line(cls, line: bytes) -> RunEvent:
        """Raises RunDirError for a line that is none."""
        try:
            facts = msgspec.json.decode(line, type=dict[str, Any])
            return cls(facts.pop("time"), facts.pop("kind"), facts.pop("message"), facts)
        except (ValueError, KeyError) as error:  # msgspec's own, and that of bytes that are no text
            raise RunDirError(f"not a line of events: {line[:200]!r}: {error}") from error


class RunDir(RunPaths):
    """One run's folder. Making the object touches nothing; `create` and `open` are the two ways to get one."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = FileLock(path / ".lock")

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    # --- making and finding ---

    @classmethod
    def create(cls, runs_dir: Path, name: str, config_text: str) -> RunDir:
        """A fresh folder `<runs_dir>/<name>-<date>-<n>` with its sub-folders and config.yaml.

        `n` counts up until the name is free, so two runs that start together never share a folder. Raises RunDirError
        where it cannot be written.
        """
        try:
            return cls._create(runs_dir, name, config_text)
        except OSError as error:
            raise RunDirError(
                f"no run directory can be made in {runs_dir}: {error.strerror}; make room, or choose another runs_dir"
            ) from error

    @classmethod
    def _create(cls, runs_dir: Path, name: str, config_text: str) -> RunDir:
        runs_dir.mkdir(parents=True, exist_ok=True)
        stem = f"{name}-{time.strftime('%Y%m%d')}"
        number = 1
        while True:
            run = cls((runs_dir / f"{stem}-{number}").resolve())
            try:
                run.path.mkdir()
                break
            except FileExistsError:
                number += 1
        for folder in (run.checkpoints, run.samples, run.archive, run.logs, run.plots):
            folder.mkdir()
        write_atomically(run.config, config_text.encode())
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """An existing run. Raises RunDirError that names what is missing and the nearest run directory."""
        path = Path(path)
        run = cls(path.resolve())
        if run.config.is_file():
            return run
        what = "does not exist" if not path.exists() else f"is no run directory: it lacks {run.config.name}"
        raise RunDirError(f"{path} {what}{_nearest(path)}")

    @classmethod
    def newest(cls, runs_dir: Path) -> RunDir:
        """The run under `runs_dir` that was written to last. Raises RunDirError when there is none."""
        runs = list(runs_in(runs_dir))
        if not runs:
            raise RunDirError(f"no run directory under {runs_dir.resolve()}; start one with: penstock train RUN.yaml")
        return max(runs, key=RunDir.touched)

    def touched(self) -> float:
        """Unix seconds at which the run was last written to; 0 for one that is being deleted."""
        times = [0.0]
        for path in (self.config, self.status, self.metrics):
            with contextlib.suppress(FileNotFoundError):
                times.append(path.stat().st_mtime)
        return max(times)

    def beside(self) -> list[RunDir]:
        """The other runs in the same folder, the one that was written to last first."""
        others = [run for run in runs_in(self.path.parent) if run.path != self.path]
        return sorted(others, key=RunDir.touched, reverse=True)

    @classmethod
    def newest_of(cls, runs_dir: Path, name: str) -> RunDir | None:
        """The run called `name` under `runs_dir` that was written to last; None when there is none."""
        numbered = re.compile(re.escape(name) + r"-\d{8}-\d+")  # as `create` calls them
        return max(
            (run for run in runs_in(runs_dir) if numbered.fullmatch(run.path.name)), key=RunDir.touched, default=None
        )

    # --- one driver at a time ---

    def lock(self) -> None:
        """Claim the folder for this process until it ends. Raises RunDirError when another one has it."""
        owner = self._lock.claim()
        if owner is not None:
            raise RunDirError(
                f"{self.path} is in use by process {owner}; wait for it to end, or stop it with: kill {owner}"
            )

    def unlock(self) -> None:
        self._lock.release()

    @property
    def locked(self) -> bool:
        """True while a driver, here or in another process on this machine, holds the folder."""
        return self._lock.held

    # --- writing and reading ---

    def begin_again(self, config_text: str) -> None:
        """The run goes on, perhaps with other limits: config.yaml says so, the one before is kept beside it, and the
        summary of an earlier end is gone."""
        if config_text != self.config.read_text():
            kept = len(list(self.path.glob("config-*.yaml")))
            write_atomically(self.path / f"config-{kept}.yaml", self.config.read_bytes())
            write_atomically(self.config, config_text.encode())
        self.summary.unlink(missing_ok=True)

    def write_status(self, status: Any) -> None:
        """Replace status.json by `status` (dataclasses, dicts, plain values); readers see old or new, never half."""
        write_atomically(self.status, msgspec.json.encode(status), sync=False)

    def read_status(self) -> dict[str, Any] | None:
        """What the driver wrote last; None before it wrote anything."""
        return self._read_json(self.status)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_atomically(self.summary, msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")

    def read_summary(self) -> dict[str, Any] | None:
        """None while the run has not ended."""
        return self._read_json(self.summary)

    def read_config(self) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load(self.config.read_text())
        return loaded

    def add_event(self, kind: str, message: str, **facts: Any) -> None:
        """Append one whole line to events.jsonl."""
        line = {"time": round(time.time(), 3), "kind": kind, "message": message} | facts
        append_line(self.events, msgspec.json.encode(line) + b"\n")

    def read_events(self) -> list[RunEvent]:
        return [RunEvent.of_line(line) for line in whole_lines(self.events)]

    def write_samples(self, version: Version, samples: Iterable[Mapping[str, Any]]) -> None:
        """A few trajectories of the step that ended in `version`, one readable JSON object per line."""
        lines = b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples)
        write_atomically(self.samples_of(version), lines, sync=False)

    def read_samples(self, step: int, lineage: int | None = None) -> list[dict[str, Any]]:
        """The samples of `step`, by default of its newest lineage. Raises RunDirError naming the steps there are."""
        name = STEP_NAME.format(step=step, lineage="*" if lineage is None else lineage)
        found = sorted(self.samples.glob(f"{name}.jsonl"), key=lambda p: int(p.stem.rsplit("-", 1)[1]))
        if not found:
            steps = sorted({int(p.stem.split("-")[1]) for p in self.samples.glob("step-*.jsonl")})
            near = min(steps, key=lambda s: abs(s - step), default=None)
            there = f"recorded are steps {steps[0]} to {steps[-1]}, the nearest is {near}" if steps else "none recorded"
            raise RunDirError(f"{self.path}: no samples of step {step}; {there}")
        return [msgspec.json.decode(line) for line in whole_lines(found[-1])]

    def sampled(self) -> list[Version]:
        """The steps that samples were recorded of, by step and lineage."""
        return _versions_in(self.samples)

    def archived(self) -> list[Version]:
        """The steps that are archived, by step and lineage."""
        return _versions_in(self.archive)

    def _read_json(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            read: dict[str, Any] = json.loads(path.read_bytes())
        except ValueError as error:
            raise RunDirError(f"{path} is damaged: {error}") from error
        return read


def _versions_in(folder: Path) -> list[Version]:
    """What the files and folders in it are called after; what is being written or deleted has another name."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:  # there may be a hundred thousand
        found = [_STEP_IN_NAME.match(entry.name) for entry in entries]
    steps = sorted((int(m[1]), int(m[2])) for m in found if m)
    return [Version(lineage, step) for step, lineage in steps]


def runs_in(folder: Path) -> Iterator[RunDir]:
    """The runs whose directories lie in `folder`."""
    if folder.is_dir():
        yield from (RunDir(p.resolve()) for p in folder.iterdir() if (p / "config.yaml").is_file())


def _nearest(path: Path) -> str:
    """`; nearest: …` for the run whose name looks most like `path`, else the newest run around it."""
    around = [run for folder in (path, path / "runs", path.parent, path.parent / "runs") for run in runs_in(folder)]
    if not around:
        return ""
    close = difflib.get_close_matches(path.name, [run.path.name for run in around], n=1, cutoff=0.6)
    best = next((r for r in around if close and r.path.name == close[0]), max(around, key=RunDir.touched))
    return f"; nearest: {best.path}"
