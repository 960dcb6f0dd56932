"""Drills whose driver is a process of its own, as on a command line, so that it can be killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_clusters import until

from benchmarks.drills import RECIPE, inputs_in
from penstock.services.rundir import RunDir, runs_in

PENSTOCK = str(Path(sys.executable).parent / "penstock")


@contextmanager
def driven(*words: str, errors: Path | None = None) -> Iterator[subprocess.Popen]:
    """`penstock` with these words; ended at the latest here. What it says besides its progress goes to `errors`."""
    with (errors or Path("/dev/null")).open("w") as said:
        process = subprocess.Popen([PENSTOCK, *words], stdout=subprocess.DEVNULL, stderr=said)
        try:
            yield process
        finally:
            process.kill()
            process.wait(30)


@contextmanager
def begun(
    folder: Path, *overrides: str, runs: Path | None = None, errors: Path | None = None
) -> Iterator[tuple[subprocess.Popen, RunDir]]:
    """A drill with its inputs in `folder`, once it has a directory, in `runs` or beside them."""
    runs = runs or folder
    given = [word for word in inputs_in(folder) if not word.startswith("runs_dir=")]
    command = ("train", str(RECIPE / "drill.yaml"), *given, f"runs_dir={runs}", *overrides)
    with driven(*command, errors=errors) as driver:
        until("there is a run", lambda: list(runs_in(runs)), 120)
        (run,) = runs_in(runs)
        yield driver, run


def resumed(run: RunDir, *overrides: str) -> None:
    """Go on, to the end."""
    subprocess.run([PENSTOCK, "resume", str(run.path), *overrides], check=True, timeout=240)


def pid_of(name: str, run: RunDir) -> int:
    """An actor's process, as `penstock status` has it."""
    (pid,) = [worker["pid"] for worker in (run.read_status() or {})["workers"] if worker["name"] == name]
    return int(pid)


def steps_of(run: RunDir) -> int:
    return int((run.read_status() or {}).get("step", 0))
