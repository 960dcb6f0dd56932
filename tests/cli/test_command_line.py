"""`penstock` as people call it: help, exit codes, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from views import view

from penstock.cli import main
from penstock.services.contracts import StoreError
from penstock.services.rundir import RunDir

HEAVY = (
    "torch",
    "transformers",
    "vllm",
    "deepspeed",
    "ray",
    "datasets",
    "pandas",
    "matplotlib",
    "numpy",
    "pydantic",
    "penstock.api",
)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _exit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of the command, called in this process."""
    monkeypatch.setattr(sys, "argv", ["penstock", *arguments])
    with pytest.raises(SystemExit) as caught:
        main.run()
    return int(caught.value.code or 0)


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom penstock.cli.main import run\nsys.argv = ['penstock', '--help']\n"
        f"try: run()\nexcept SystemExit: pass\nprint([m for m in {HEAVY} if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "train" in said.stdout
    assert said.stdout.splitlines()[-1] == "[]"


def test_help_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit(monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    looking = ("status", "runs", "check", "algorithms", "doctor", "schema", "plot")
    steering = ("scale", "remove", "pause", "go", "checkpoint", "gate", "set", "rollback", "stop")
    for name in ("train", "sft", "evaluate", "resume", *looking, *steering):
        assert f" {name} " in said


def test_check_reports_everything_and_starts_nothing(here: Path) -> None:
    """In a process of its own, as people call it."""
    (here / "run.yaml").write_text("modle: {path: x}\nlimits: {steps: 0}\n")
    command = [sys.executable, "-c", "from penstock.cli.main import run; run()", "check", "run.yaml"]
    said = subprocess.run([*command, "rollout.worker=2"], capture_output=True, text=True, timeout=120)
    assert said.returncode == 2
    for part in ("did you mean model?", "did you mean rollout.workers?", "allowed: 1 or more", "run.yaml:2"):
        assert part in said.stdout
    assert "nothing was started" in said.stderr
    assert [p.name for p in here.iterdir()] == ["run.yaml"]


def test_a_wrong_run_directory_is_one_message_without_a_traceback(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit(monkeypatch, "status", "nowhere") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("penstock: there is no run 'nowhere'; under ") and err.count("\n") == 1


def test_status_of_no_run_at_all_names_the_command_that_starts_one(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit(monkeypatch, "status") == 2
    assert "start one with: penstock train RUN.yaml" in capsys.readouterr().err


def test_status_shows_the_newest_run_and_also_as_json(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir.create(here / "runs", "sort", "name: sort\n")
    run.write_status(view(phase="finished"))
    assert _exit(monkeypatch, "status") == 0
    said = capsys.readouterr().out
    assert [Path(said.splitlines()[0]).resolve(), said.splitlines()[1]] == [run.path.resolve(), "finished"]
    assert "rollout-0" in said
    assert _exit(monkeypatch, "status", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] == "finished"
    assert facts["facts"]["view"]["ledger"]["by_state"]["committed"] == 300


def test_the_schema_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit(monkeypatch, "schema") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Penstock run file"


def _run(tmp_path: Path, *goals: dict[str, Any]) -> Any:
    return SimpleNamespace(dir=tmp_path, summary={"goals": list(goals)})


GOAL = {"metric": "eval/sampled/accuracy", "of": "final", "wanted": "at least 0.9", "value": 0.95, "reached": True}


def test_a_run_that_reached_its_goals_exits_with_zero_and_its_directory_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("penstock.api.train", lambda *_, **__: _run(tmp_path, GOAL), raising=False)
    assert _exit(monkeypatch, "train", "run.yaml") == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "[penstock] checking run.yaml",
        "goal reached: final eval/sampled/accuracy at least 0.9, found 0.95",
        str(tmp_path),
    ]


def test_a_missed_goal_exits_with_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = GOAL | {"value": None, "reached": False}
    monkeypatch.setattr("penstock.api.resume", lambda *_, **__: _run(tmp_path, GOAL, missed), raising=False)
    assert _exit(monkeypatch, "resume", "some-run") == 3
    assert "goal MISSED: final eval/sampled/accuracy at least 0.9, found never recorded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"), [(StoreError("the store went away"), 1), (KeyboardInterrupt(), 130), (SystemExit(7), 7)]
)
def test_how_a_run_ended_is_its_exit_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("penstock.api.sft", fail, raising=False)
    assert _exit(monkeypatch, "sft", "run.yaml") == code
    if isinstance(error, StoreError):
        assert capsys.readouterr().err == "penstock: the store went away\n"


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("penstock.api.evaluate", fail, raising=False)
    monkeypatch.setattr(sys, "argv", ["penstock", "evaluate", "run.yaml", "--model", "m"])
    with pytest.raises(ZeroDivisionError):
        main.run()


def test_overrides_and_options_reach_the_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    def evaluate(*arguments: Any, **_: Any) -> dict[str, float]:
        calls.append(arguments)
        return {"eval/greedy/accuracy": 0.5}

    monkeypatch.setattr("penstock.api.evaluate", evaluate, raising=False)
    assert _exit(monkeypatch, "evaluate", "run.yaml", "limits.steps=3", "seed=1", "--model", "m") == 0
    assert calls == [(Path("run.yaml"), "m", ["limits.steps=3", "seed=1"])]


def test_a_command_that_may_be_repeated_says_so_to_the_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[bool] = []

    def train(*_: Any, once: bool, **__: Any) -> Any:
        said.append(once)
        return _run(tmp_path)

    monkeypatch.setattr("penstock.api.train", train, raising=False)
    assert [_exit(monkeypatch, "train", "run.yaml"), _exit(monkeypatch, "train", "run.yaml", "--once")] == [0, 0]
    assert said == [False, True]


def test_a_job_system_that_repeats_what_failed_may_be_told_that_a_missed_goal_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missed = GOAL | {"value": 0.5, "reached": False}
    monkeypatch.setattr("penstock.api.train", lambda *_, **__: _run(tmp_path, missed), raising=False)
    exits = [_exit(monkeypatch, "train", "run.yaml", *more) for more in ([], ["--missed-goal", "0"])]
    assert exits == [3, 0]
    assert capsys.readouterr().out.count("goal MISSED") == 2
    assert _exit(monkeypatch, "train", "run.yaml", "--missed-goal", "256") == 2
