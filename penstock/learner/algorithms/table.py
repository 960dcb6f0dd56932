"""The table of algorithms: one row each, found by name or by import path.

This file loads no tensors: `penstock check` and `--help` read it. `learner.algorithms.bound` turns a row's
cells into functions.
"""

from __future__ import annotations

import difflib
import importlib

from penstock.learner.algorithms.row import Algorithm
from penstock.learner.algorithms.rows import ROWS

__all__ = ["Algorithm", "find", "register", "rows"]

_ROWS: dict[str, Algorithm] = {row.name: row for row in ROWS}


def register(row: Algorithm) -> Algorithm:
    """Add a row. Raises ValueError when another row has the name already."""
    if _ROWS.setdefault(row.name, row) is not row:
        raise ValueError(f"there is an algorithm {row.name!r} already; give yours another name")
    return row


def rows() -> dict[str, Algorithm]:
    """All rows by name."""
    return dict(_ROWS)


def find(name: str) -> Algorithm:
    """The row `name`, or the one at the import path `module:NAME`. Raises ValueError with the nearest name."""
    module, colon, attribute = name.partition(":")
    if colon:
        row = getattr(importlib.import_module(module), attribute, None)
        if not isinstance(row, Algorithm):
            raise ValueError(f"{name} is no Algorithm; found {type(row).__name__}")
        return row
    if name not in _ROWS:
        near = difflib.get_close_matches(name, _ROWS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no algorithm is called {name!r}; {hint}known: {', '.join(sorted(_ROWS))}, or MODULE:ROW")
    return _ROWS[name]
