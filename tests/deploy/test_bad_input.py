"""docs/bad-input.md: what the page says of every bad input is what `penstock check` says, with exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import bad_input
import pytest
from bad_input import ROWS, Row, part

from penstock.cli import main
from penstock.deploy import run
from penstock.deploy.checks import context, world
from penstock.services.rundir import RunDir

ALL = [pytest.param(row, id=f"{subject}: {row.what}") for subject, rows in ROWS.items() for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bad_input.make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(context.Context, "gpus", 0)
    monkeypatch.setattr(context, "DRIVERS", ())
    monkeypatch.setattr(world, "STORE_DEADLINE", 0.1)
    yield folder
    assert not (folder / "runs").exists(), "nothing was started"


@pytest.fixture(scope="module")
def page() -> list[str]:
    return part("check")


@pytest.mark.parametrize("row", ALL)
def test_what_the_page_says_is_what_is_said(row: Row, home: Path, page: list[str]) -> None:
    said, code = bad_input.lines_of(row, home)
    assert code == 2
    assert bad_input.markdown(row, said) in page, "write the page anew: make bad-input"


def test_the_page_has_no_row_that_is_not_tried(page: list[str]) -> None:
    told = [line for line in page if line.startswith("| ") and not line.startswith("| what is given")]
    assert len(told) == len(ALL)


def test_the_good_run_file_of_the_page_is_good(home: Path) -> None:
    assert bad_input.lines_of(Row("nothing amiss"), home) == ([], 0)


@pytest.mark.parametrize("command", ["train", "sft", "evaluate"])
def test_every_command_that_begins_something_ends_with_2_before_it_begins(
    command: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "run.yaml").write_text(bad_input.RUN_FILE)
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("the run was started"))
    monkeypatch.setattr(sys, "argv", ["penstock", command, "run.yaml", "learner.learning_rat=1", "model.path=./modle"])
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "learner.learning_rat: there is no such key" in told and "did you mean learner.learning_rate?" in told
    assert "model.path: " in told, "all of them together"


def test_a_resume_with_bad_changes_ends_with_2_before_it_begins(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = RunDir.create(tmp_path / "elsewhere", "begun", bad_input.RUN_FILE)
    monkeypatch.setattr(run, "train", lambda *_, **__: pytest.fail("the run was started"))
    for change, said in [
        ("limits.stepz=9", "limits.stepz: there is no such key"),
        ("rollout.group_size=4", "rollout.group_size: "),  # which may not change on the way
    ]:
        monkeypatch.setattr(sys, "argv", ["penstock", "resume", str(directory.path), change])
        with pytest.raises(SystemExit) as ended:
            main.run()
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
