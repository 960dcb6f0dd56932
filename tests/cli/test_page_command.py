"""`penstock dashboard`: which run, which port, and one clear error for what cannot be."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from penstock.cli import main, page
from penstock.deploy.reach import the_one
from penstock.services.dashboard.config import PageError
from penstock.services.rundir import RunDir, RunDirError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def run(runs: Path) -> RunDir:
    return RunDir.create(runs, "sort", "name: sort\n")


def test_two_runs_at_once_are_one_too_many() -> None:
    with pytest.raises(RunDirError, match="both name a run"):
        the_one("sort", "other")
    assert (the_one("sort", None), the_one(None, "other"), the_one(None, None)) == ("sort", "other", None)


def test_the_usual_port_gives_way_and_a_chosen_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        monkeypatch.setattr(page, "USUAL_PORT", taken)
        free = page.choose("127.0.0.1", None)
        assert free.port != taken
        free.socket.close()
        with pytest.raises(PageError, match="in use"):
            page.choose("127.0.0.1", taken)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN", "--port", "TAKEN"], "is in use; take another one, or 0"),
        (["RUN", "--host", "0.0.0.0"], "needs a token"),
        (["RUN", "--host", "no.such.host.invalid"], "needs a token"),
        (["nowhere"], "there is no run 'nowhere'"),
        (["--run", "nowhere"], "there is no run 'nowhere'"),
        (["."], "is no run directory: it lacks config.yaml"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_code_2(
    run: RunDir,
    tmp_path: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PENSTOCK_DASHBOARD_TOKEN", raising=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        words = {"RUN": str(run.path), "TAKEN": str(other.getsockname()[1])}
        monkeypatch.setattr(sys, "argv", ["penstock", "dashboard", *[words.get(word, word) for word in arguments]])
        with pytest.raises(SystemExit) as ended:
            main.run()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("penstock: ")
    assert "Traceback" not in error
