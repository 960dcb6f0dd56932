"""What is read of a module of the user's own, which is never run: imports, functions, arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.reward import own

MODULE = """\
import json
import beside, nowhere.at_all
from . import relative
try:
    import perhaps
except ImportError: ...

LIMIT = 3
shortcut = lambda completions: [0.0]

def plain(completions, answer): ...
def rest(completions, *, strict, **kwargs): ...
def optional(completions, level=1, *, strict=False): ...
async def later(prompts, parts): ...
@json.loads
def decorated(anything): ...
class Judge:
    def __call__(self, completions): ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE.replace("import beside, nowhere.at_all\n", "import beside\n"))
    (tmp_path / "beside.py").touch()
    (tmp_path / "lacking.py").write_text(MODULE)
    return tmp_path


def told(folder: Path, name: str, columns: set[str] | None = frozenset({"answer"}), **args: object) -> list:
    return own.problems(name, folder, args, columns, "the data")


@pytest.mark.parametrize("name", ["plain", "optional", "later", "shortcut", "decorated", "Judge", "json"])
def test_what_can_be_called_with_what_there_is_has_no_problem(folder: Path, name: str) -> None:
    assert told(folder, f"mine:{name}") == []


def test_an_argument_without_a_default_must_be_a_column_or_in_args(folder: Path) -> None:
    ((key, text),) = told(folder, "mine:plain", {"anser", "level"})
    assert key == "rule"
    assert "line 11: plain needs the argument 'answer'" in text
    there = "anser, completion_ids, completions, level, parts, prompts"
    assert text.endswith(f"of the data there are {there}; did you mean 'anser'?")
    assert told(folder, "mine:plain", {"level"}, answer="4") == []
    assert told(folder, "mine:plain", None) == [], "columns are not known"
    assert [key for key, _ in told(folder, "mine:rest")] == ["rule"]
    assert told(folder, "mine:rest", strict=True, more=1) == []


def test_an_entry_of_args_must_be_an_argument(folder: Path) -> None:
    ((key, text),) = told(folder, "mine:optional", levle=2)
    assert key == "args.levle"
    assert text.endswith("has no argument 'levle', only completions, level, strict; did you mean 'level'?")


def test_a_module_that_imports_what_is_not_there_is_told_with_the_line(folder: Path) -> None:
    ((key, text),) = told(folder, "lacking:plain")
    assert (key, "line 2 imports 'nowhere.at_all', which is not installed" in text) == ("rule", True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine:plian", "has no 'plian'; it has plain, rest, optional, later, decorated, Judge; did you mean 'plain'?"),
        ("mine:LIMIT", "line 8: 'LIMIT' is 3, which is no function"),
        ("mine.py:plain", "a module is named without .py; did you mean 'mine:plain'?"),
        ("mien:plain", "no installed module 'mien'; did you mean 'mine'?"),
        ("mine:", "a rule of your own is written module:function"),
    ],
)
def test_what_is_not_there_is_named_with_the_nearest(folder: Path, name: str, said: str) -> None:
    ((key, text),) = told(folder, name)
    assert key == "rule" and said in text


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    ((_, text),) = told(tmp_path / "gone", "mine:plain")
    assert f"reward.folder, where modules are looked for, is no folder: {tmp_path / 'gone'}" in text
    (tmp_path / "odd.py").write_bytes(b"\0")
    ((_, text),) = told(tmp_path, "odd:plain")
    assert "odd.py" in text
