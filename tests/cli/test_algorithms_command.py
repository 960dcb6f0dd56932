"""`penstock algorithms`: the table and one row, on a terminal, in a pipe and in the docs."""

from __future__ import annotations

import dataclasses
import io
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import penstock.algorithms
from penstock.cli import algorithms_table as shown
from penstock.cli import main
from penstock.learner.algorithms import table
from penstock.learner.algorithms.loss_cells import KL, Doubling
from penstock.learner.config import AlgorithmSection

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `penstock algorithms …`, called in this process."""
    monkeypatch.setattr(sys, "argv", ["penstock", "algorithms", *arguments])
    with pytest.raises(SystemExit) as caught:
        main.run()
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out, said.err


def test_in_a_pipe_every_row_is_one_line_under_its_heads(monkeypatch: Any, capsys: Any) -> None:
    code, out, _ = call(monkeypatch, capsys)
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == ["row", *table.rows()]
    dapo = next(line for line in lines if line.startswith("dapo "))
    assert "ppo_clip clip_low 0.2 clip_high 0.28" in dapo
    assert dapo[lines[0].index("reduction") :].startswith("group_token_mean")


@pytest.mark.parametrize("width", [60, 80, 111, 128, 129, 150, 200])
def test_on_a_terminal_nothing_is_cut_off_no_word_is_broken_and_no_row_is_tall(width: int) -> None:
    rows = list(table.rows().values())
    console = Console(width=width, file=io.StringIO(), record=True)
    shown.show(rows, console)
    drawn, hints = console.export_text().split("\n\n")
    assert "…" not in drawn
    lines = drawn.splitlines()
    begins = [place for place, line in enumerate(lines) if not line.startswith("  ")]
    assert [lines[place].split()[0] for place in begins] == ["row", *table.rows()]
    assert max(after - place for place, after in itertools.pairwise([*begins, len(lines)])) <= 3
    whole = "quorum" in drawn
    assert whole == (width >= 129)
    expected = [cell for row in rows for cell in (shown.cells(row) if whole else (row.name, row.summary))]
    heads = [*shown.HEADS] if whole else ["row", "what", "it", "is"]
    assert sorted(drawn.split()) == sorted([*heads, *" ".join(expected).split()])
    assert "penstock algorithms NAME" in hints
    assert ("a wider terminal (129 columns)" in " ".join(hints.split())) != whole


def test_the_kl_of_a_row_is_shown_with_place_and_size() -> None:
    heads = dict(zip(shown.HEADS, shown.cells(table.find("grpo")), strict=True))
    assert heads["KL"] == "k3 in the loss, off"
    kl = KL(estimator="k1", placement="reward", coefficient=0.05, controller=Doubling(target=0.1))
    changed = dataclasses.replace(table.find("rloo"), kl=kl)
    assert shown.cells(changed)[shown.HEADS.index("KL")].startswith("k1 in the reward 0.05, doubling target 0.1")


def test_one_row_says_paper_equation_traps_and_how_it_stands_in_a_run_file(monkeypatch: Any, capsys: Any) -> None:
    code, out, _ = call(monkeypatch, capsys, "cispo")
    assert code == 0
    for part in ("arXiv 2506.13585", "−sg(min(π/μ, max_weight)) A log π", "The cap is absolute", "max_weight: 5"):
        assert part in out


@pytest.mark.parametrize("name", list(table.rows()))
def test_the_run_file_that_is_shown_is_the_row(name: str) -> None:
    text = shown.detail(table.find(name), name)
    section = yaml.safe_load(text[text.index("  algorithm:\n") :])["algorithm"]
    # Plain YAML reads 1e-08 as text, which the fields turn into a number.
    assert AlgorithmSection.model_validate(section) == AlgorithmSection.model_validate({"name": name})


def test_an_unknown_row_is_wrong_input_and_names_the_nearest(monkeypatch: Any, capsys: Any) -> None:
    code, out, err = call(monkeypatch, capsys, "cisbo")
    assert (code, out) == (2, "")
    assert "did you mean 'cispo'?" in err


def test_a_row_of_ones_own_is_shown_from_the_folder_where_one_stands(
    monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows_to_show.py").write_text(
        "from penstock.algorithms import Algorithm, PolicyGradient, GroupMean, Reduction\n"
        "MINE = Algorithm(name='mine', summary='as plain as can be', paper='none',\n"
        "    baseline=GroupMean(), objective=PolicyGradient(), reduction=Reduction(kind='token_mean'))\n"
    )
    code, out, _ = call(monkeypatch, capsys, "rows_to_show:MINE")
    assert code == 0
    assert out.startswith("mine: as plain as can be")
    assert "name: rows_to_show:MINE" in out


def test_the_page_about_algorithms_holds_what_the_command_prints(monkeypatch: Any, capsys: Any) -> None:
    _, out, _ = call(monkeypatch, capsys, "--markdown")
    page = PAGE.read_text()
    inside = page[page.index("<!-- table -->") + len("<!-- table -->") : page.index("<!-- end of table -->")]
    assert inside.strip() == out.strip(), "run `penstock algorithms --markdown` and lay it between the marks"


def test_the_public_face_has_every_kind_of_cell(monkeypatch: Any) -> None:
    assert penstock.Algorithm is penstock.algorithms.Algorithm
    for name in penstock.algorithms.__all__:
        assert getattr(penstock.algorithms, name) is not None
    for row in table.rows().values():
        for cell in row.cells().values():
            kind = type(cell).__name__
            assert type(cell) in (str, int, float) or kind in penstock.algorithms.__all__, kind
