"""The table of algorithms: one row each, made of cells. A new algorithm is a new row.

This file loads no tensors: `penstock check` and `--help` read it. `learner.algorithms.bound` turns a row's
cells into functions.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass, fields
from typing import Any

from penstock.learner.algorithms.cells import (
    Baseline,
    Credit,
    GroupZScore,
    NoValue,
    Outcome,
    Value,
    Whitening,
)
from penstock.learner.algorithms.loss_cells import (
    KL,
    KeepAll,
    Objective,
    PPOClip,
    Reduction,
    Reject,
    TruncatedIS,
    Trust,
)


@dataclass(frozen=True)
class Algorithm:
    """One row: the parts of an algorithm, with the defaults of its paper."""

    name: str
    summary: str
    paper: str
    baseline: Baseline
    objective: Objective
    reduction: Reduction
    whitening: Whitening = Whitening()
    credit: Credit = Outcome()
    trust: Trust = TruncatedIS()
    reject: Reject = KeepAll()
    kl: KL = KL()
    value: Value = NoValue()
    group_filter: str = "signal"
    """`signal`: groups whose rewards are all equal are replaced by others; `all`: they stay in the batch."""
    quorum: int = 2
    """Fewest scored members with which a group is still of use."""
    entropy_coefficient: float = 0.0
    equation: str = ""
    """The loss, as plain text; shown by `penstock algorithms NAME`."""
    traps: tuple[str, ...] = ()
    """What implementations have got wrong; shown by `penstock algorithms NAME`."""

    def cells(self) -> dict[str, Any]:
        """The row as plain values, by the names that a run file uses."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _WORDS}
        return {key: value.model_dump() if hasattr(value, "model_dump") else value for key, value in values.items()}


_WORDS = ("name", "summary", "paper", "equation", "traps")
"""Fields for people; the others are cells."""
_ROWS: dict[str, Algorithm] = {}


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


GRPO = register(
    Algorithm(
        name="grpo",
        summary="group z-score advantages, clipped ratio, mean over answers of the mean over their tokens",
        paper="DeepSeekMath, arXiv 2402.03300, eq. 3; groups without signal are refilled as in DAPO, arXiv 2503.14476",
        baseline=GroupZScore(),
        objective=PPOClip(),
        reduction=Reduction(kind="sequence_mean"),
    )
)
