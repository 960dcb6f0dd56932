"""`penstock compare`, `tail` and `status --watch` as people call them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import compared
import pytest
from rich.console import Console
from views import view

from penstock.cli import compare_table, main
from penstock.services.dashboard.comparison import Comparison, Curve, Curves, Difference, Figure
from penstock.services.rundir import RunDir


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunDir, RunDir]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    first = compared.end(compared.run_of(tmp_path, "carry", 80))
    return first, compared.run_of(tmp_path, "carry", 60, rate=3e-4, max_lag=0)


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["penstock", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main.run()
    return int(caught.value.code or 0)


def test_two_runs_in_a_pipe_are_columns_between_tabs(
    runs: tuple[RunDir, RunDir], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "compare", runs[0].path, runs[1].path, "-m", "reward/mean", "--over", "tokens") == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["", runs[0].path.name, runs[1].path.name]
    assert ["run: steps", "80", "60"] in lines
    assert ["run file: learner.learning_rate", "0.0001", "0.0003"] in lines
    # Zero is no false, and nothing but what differs is told of the run files.
    assert ["run file: staleness.max_lag", "2", "0"] in lines
    assert len([line for line in lines if line[0].startswith("run file")]) == 2
    assert lines[-1] == ["800", "0.8", ""]


def test_two_runs_as_json(
    runs: tuple[RunDir, RunDir], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "compare", runs[0].path, runs[1].path, "-m", "reward/mean", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["comparison"]["a"] == runs[0].path.name
    assert found["curves"][0]["series"][1]["x"][-1] == 60


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("compare", "{a}", "nowhere"), "nowhere does not exist; nearest:"),
        (("compare", "{a}", "{b}", "-m", "reward/men"), "no metric 'reward/men'"),
        (("tail", "{a}", "-k", "died"), "no event of the kind died so far"),
        (("tail", "{a}", "--since", "soon"), "--since 'soon' is no moment"),
        (("tail", "nowhere"), "there is no run 'nowhere'"),
        (("status", "nowhere", "--watch"), "there is no run 'nowhere'"),
    ],
)
def test_what_is_not_there_is_one_message_and_exit_code_2(
    runs: tuple[RunDir, RunDir],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    words = [word.format(a=runs[0].path, b=runs[1].path) for word in arguments]
    assert called(monkeypatch, *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("penstock: ")
    assert says in said


def test_tail_prints_a_line_per_event_without_colours_in_a_pipe(
    runs: tuple[RunDir, RunDir], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs[0].add_event("died", "rollout-0 died: " + "of many words " * 20, name="rollout-0")
    assert called(monkeypatch, "tail", runs[0].path) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "\x1b" not in said
    assert called(monkeypatch, "tail", runs[0].path, "--json", "-n", "1") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "died"


def test_a_run_that_is_over_is_watched_for_a_moment(
    runs: tuple[RunDir, RunDir], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs[0].write_status(view(phase="finished", run_dir=str(runs[0].path)))
    assert called(monkeypatch, "status", runs[0].path, "--watch", "--every", "0.1") == 0
    assert "finished" in capsys.readouterr().out


def test_a_terminal_gets_tables_in_which_nothing_of_the_runs_is_markup() -> None:
    found = Comparison(
        "a-1",
        "b-1",
        [Difference("data.path", "[red]", None, "a")],
        [Figure("run", "steps", "", 80.0, 12_345.0), Figure("lag", "mean", "steps", None, 0.123456)],
        [],
    )
    curves = [
        Curves("reward/mean", "steps", [Curve("a-1", [0.0, 110.0], [0.0, 1.1]), Curve("b-1", [0.0, 55.0], [1.0, 1.0])])
    ]
    console = Console(file=io.StringIO(), width=100, force_terminal=True, no_color=True)
    compare_table.show(found, curves, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    for part in ("12,345", "0.1235 steps", "–", "'[red]'", "not there", "reward/mean over steps"):
        assert part in text
    rows = list(compare_table.rows(curves[0]))
    assert len(rows) == compare_table.POINTS
    assert rows[1] == pytest.approx([10.0, 0.1, 1.0])
    assert rows[6][2] is None, "beyond its end a curve has no value"
