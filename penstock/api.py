"""The public face in Python: start, resume, evaluate and open runs. No logic of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.deploy.checks.context import Stage
from penstock.deploy.findings import Finding
from penstock.deploy.runfile import RunFile, load
from penstock.services.metrics import read_table
from penstock.services.rundir import RunDir, RunEvent

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """A run on disk, running or ended. Everything is read anew at each access."""

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory

    def __repr__(self) -> str:
        return f"Run({str(self.dir)!r})"

    @property
    def dir(self) -> Path:
        return self._directory.path

    @property
    def config(self) -> RunFile:
        """The run file as it was resolved."""
        return load(self._directory.config)

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per step, NaN where a metric was not recorded; abandoned steps are left out."""
        return read_table(self._directory.metrics)

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the run left at its end; None while it has not ended."""
        return self._directory.read_summary()

    @property
    def events(self) -> list[RunEvent]:
        """What happened between the steps, oldest first."""
        return self._directory.read_events()

    @property
    def model(self) -> Path:
        """The trained model in Hugging Face format, there once the run has ended."""
        return self._directory.model

    def samples(self, step: int) -> list[dict[str, Any]]:
        """Some trajectories of one step. Raises RunDirError naming the nearest step that has some."""
        return self._directory.read_samples(step)


def open_run(run_dir: Path | str) -> Run:
    """An existing run. Raises RunDirError with the nearest run directory when `run_dir` is none."""
    return Run(RunDir.open(run_dir))


def check(run_file: Path | str, overrides: Sequence[str] = (), stage: Stage = "train") -> list[Finding]:
    """Everything that can be known to be wrong before starting; starts nothing."""
    from penstock.deploy.preflight import check as preflight

    return preflight(Path(run_file), overrides, stage)
