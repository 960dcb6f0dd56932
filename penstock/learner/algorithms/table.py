"""The table of algorithms: one row each, found by name, or by import path where it is the user's own.

This file loads no tensors: `penstock check` and `--help` read it. `learner.algorithms.bound` turns a row's
cells into functions.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from penstock.learner.algorithms.row import Algorithm
from penstock.learner.algorithms.rows import ROWS

_ROWS = {row.name: row for row in ROWS}


class RowError(ValueError):
    """There is no such row; the text says what there is, and which was probably meant."""


def rows() -> dict[str, Algorithm]:
    """Penstock's own rows by name, in the order of the table."""
    return dict(_ROWS)


def find(name: str, folder: Path | None = None) -> Algorithm:
    """The row `name`, or the one at the import path `module:ROW`, where `module` may be a file in `folder`. Raises
    RowError with the nearest name."""
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in _ROWS:
            listed = ", ".join(_ROWS)
            raise RowError(f"no algorithm is called {name!r}{_near(name, _ROWS)}; there are {listed}, or MODULE:ROW")
        return _ROWS[name]
    if not module or not attribute:
        raise RowError(f"{name!r}: a row of your own is written MODULE:ROW")
    loaded = _load(module, folder)
    row = getattr(loaded, attribute, None)
    if not isinstance(row, Algorithm):
        theirs = [key for key, value in vars(loaded).items() if isinstance(value, Algorithm)]
        what = f"is no Algorithm but {type(row).__name__}" if hasattr(loaded, attribute) else "is not there"
        there = ", ".join(theirs) or "no Algorithm"
        raise RowError(f"{name}: {attribute} {what}; {loaded.__file__} has {there}{_near(attribute, theirs)}")
    return row


def add_to_path(folder: Path) -> None:
    """Let modules in `folder` be imported. What is installed wins, so that a file cannot hide a library."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _load(module: str, folder: Path | None) -> ModuleType:
    """The module; what its own code raises becomes a RowError with the cause."""
    if folder is not None:
        add_to_path(folder)
    importlib.invalidate_caches()
    try:
        loaded = importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in (module, module.split(".", maxsplit=1)[0]):
            names = [file.stem for file in folder.glob("*.py")] if folder is not None and folder.is_dir() else []
            where = f"in {folder} " if folder is not None else ""
            raise RowError(f"there is no module {module!r} {where}nor installed{_near(module, names)}") from error
        raise RowError(f"the module {module!r} cannot be imported: {type(error).__name__}: {error}") from error
    beside = folder.joinpath(*module.split(".")).with_suffix(".py") if folder is not None else None
    found = Path(loaded.__file__) if loaded.__file__ else None
    if beside is not None and beside.is_file() and found is not None and not beside.samefile(found):
        raise RowError(f"there are two modules {module!r}: {beside}, and {found}, which is in use; rename yours")
    return loaded


def _near(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
