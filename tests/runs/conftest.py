"""Whole runs of the carry recipe, short ones: made once, looked at by many tests."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "carry"
sys.path.insert(0, str(RECIPE))

STEPS = 14
SHORT = (
    f"limits.steps={STEPS}",
    "evaluation.every=0",
    "evaluation.max_prompts=256",
    "checkpoints.every=5",
    "archive.every=5",
    "archive.weights=true",
    "audit.every=5",
    "goals=[]",
)
"""Fourteen steps are enough to see the policy move."""


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def taught(home):
    """(inputs, fine-tuned model) of seed 0."""
    import demo

    inputs = demo.prepare(0, home)
    return inputs, demo.fine_tuned(0, inputs, home)


def folders_of_runs() -> set[Path]:
    """Folders of Ray and of private stores; other runs on this machine may have some too."""
    return set(Path(tempfile.gettempdir()).glob("penstock-*"))


@pytest.fixture(scope="session")
def folders_before(taught) -> set[Path]:
    """Those that were there before the run that most tests look at."""
    return folders_of_runs()


@pytest.fixture(scope="session")
def asynchronous(home, taught, folders_before):
    """The run that most tests look at: two workers, lag up to two."""
    import demo

    return demo.trained(0, *taught, home, [*SHORT, "staleness.max_lag=2"])


@pytest.fixture(scope="session")
def overrides_of(home, taught):
    """What `penstock train grpo.yaml` needs to run on this session's inputs."""
    import demo

    inputs, model = taught
    return [
        f"runs_dir={home}",
        f"model.path={model}",
        *demo.data_of(inputs, **demo.TRAINING_FILES),
        *SHORT,
    ]


def processes_of(run_dir: Path) -> list[str]:
    """Command lines of living processes that this run started: they all inherited its mark."""
    from penstock.deploy.leftovers import marked

    return [" ".join(process.cmdline()) for process in marked((run_dir / ".run-id").read_text())]


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    """Makes a module of rewards of a test's own, where rule processes find it, too: `rewards(name, code)`."""

    def made(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))

    return made
