"""The public face in Python: start, resume, evaluate and open runs. No logic of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.deploy.checks.context import Stage
from penstock.deploy.findings import Finding
from penstock.deploy.runfile import RunFile, load, read_for_resume
from penstock.services.metrics import read_table
from penstock.services.rundir import RunDir, RunEvent

if TYPE_CHECKING:
    import pandas as pd

    from penstock.deploy.view import Display
    from penstock.learner.whatif import At, Comparison


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


def train(
    run_file: Path | str, overrides: Sequence[str] = (), *, once: bool = False, display: Display | None = None
) -> Run:
    """Train with asynchronous reinforcement learning; returns when the run has ended.

    `once`: the same call made again goes on with the newest run of this name from its last checkpoint, and returns
    one that has ended as it is.

    Raises RunFileError listing every mistake before anything is started, PenstockError with the cause when the run
    fails, KeyboardInterrupt after the clean end that a signal asks for.
    """
    from penstock.deploy.run import train as conduct

    if once:
        from penstock.deploy.once import earlier

        read = load(run_file, overrides)
        what, there = earlier(Path(read.runs_dir), read.name)
        if there is not None and what != "start":
            return Run(there) if what == "ended" else resume(there.path, overrides, display=display)
    ready, directory = _open_new(run_file, overrides, "train")
    conduct(ready, directory, display)
    return Run(directory)


def sft(run_file: Path | str, overrides: Sequence[str] = (), *, display: Display | None = None) -> Run:
    """Fine-tune on demonstrations with the `sft` section; the model is at `.model` of what is returned. Raises as
    `train` does."""
    from penstock.deploy.tune import tune

    ready, directory = _open_new(run_file, overrides, "sft")
    tune(ready, directory, display)
    return Run(directory)


def evaluate(run_file: Path | str, model: str | None = None, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Metrics of `model` (a directory or hub id; by default the run file's own) on the held-out prompts."""
    from penstock.deploy.measure import measure
    from penstock.deploy.preflight import require

    chosen = [f"model.path={Path(model).resolve() if Path(model).exists() else model}"] if model else []
    ready, _ = require(Path(run_file), [*overrides, *chosen], "evaluate")
    return measure(ready)


def resume(run_dir: Path | str, overrides: Sequence[str] = (), *, display: Display | None = None) -> Run:
    """Go on with a run from its last checkpoint. Raises RunFileError for overrides that may not change."""
    from penstock.deploy.preflight import require
    from penstock.deploy.run import train as conduct

    directory = RunDir.open(run_dir)
    ready, warnings = require(directory.config, overrides, "train", read_for_resume)
    for warning in warnings:
        directory.add_event("warning", str(warning))
    conduct(ready, directory, display, resume=True)
    return Run(directory)


def whatif(
    run_dir: Path | str,
    rows: Sequence[str] = (),
    sets: Sequence[str] = (),
    *,
    at: At = "start",
    newest: int | None = None,
    progress: Callable[[int, int, str], None] = lambda _done, _of, _what: None,
) -> Comparison:
    """What other algorithms would have done with the archived steps of a run, finished or not; nothing is generated.

    `rows`: rows of the table with changes, as "cispo objective.max_weight=3"; `sets`: changes to the run's own, as
    "trust.kind=masked_is"; without either all rows and the usual corrections. `at`: "start" or "next" (the weights that
    a step has led to). `newest`: only so many steps. Writes whatif.json and plots/whatif.png. Raises PenstockError.
    """
    from penstock.deploy.whatif import whatif as look

    return look(RunDir.open(run_dir), rows, sets, at, newest, progress)


def _open_new(run_file: Path | str, overrides: Sequence[str], stage: Stage) -> tuple[RunFile, RunDir]:
    """The checked run file and a fresh directory for it."""
    from penstock.deploy.preflight import require

    ready, warnings = require(Path(run_file), overrides, stage)
    directory = RunDir.create(Path(ready.runs_dir), ready.name, ready.to_yaml())
    for warning in warnings:
        directory.add_event("warning", str(warning))
    return ready, directory
