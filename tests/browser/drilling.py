"""A run in a process of its own, as a person starts it: real actors, store and learner, answers at a set pace."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from browsing import PENSTOCK, ROOT, until

from penstock.services.rundir import RunDir, RunEvent

START = 240.0
"""Seconds that a run may take to begin on a busy machine."""


@dataclass
class Drill:
    """The run, seen from outside."""

    process: subprocess.Popen[str]
    home: Path

    @property
    def output(self) -> str:
        return (self.home / "output").read_text()

    @property
    def directory(self) -> RunDir:
        return RunDir.newest(self.home / "runs")

    def address(self) -> str:
        """That of its page, which is there long before the run trains."""

        def said() -> re.Match[str] | None:
            assert self.process.poll() is None, self.output
            return re.search(r"watch the run at (http://\S+)", self.output)

        return until("the page's address is printed", said, START)[1]

    def events(self, kind: str) -> list[RunEvent]:
        return [event for event in self.directory.read_events() if event.kind == kind]

    def view(self) -> dict[str, Any]:
        return self.directory.read_status() or {}

    def worker(self, name: str) -> dict[str, Any]:
        return next((worker for worker in self.view().get("workers", ()) if worker["name"] == name), {})


@contextmanager
def drilling(home: Path) -> Iterator[Drill]:
    """Begin one; it is ended when it has not ended by itself."""
    subprocess.run([sys.executable, "recipes/drill/prepare.py", home / "inputs"], cwd=ROOT, check=True)
    overrides = [
        f"model.path={home}/inputs/model",
        f"data.sources.sums.path={home}/inputs/sums.jsonl",
        f"runs_dir={home}/runs",
        "limits.steps=100000",
        "dashboard.enabled=true",
    ]
    command = [*PENSTOCK, "train", "recipes/drill/drill.yaml", *overrides]
    with (home / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True)
        try:
            yield Drill(process, home)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
