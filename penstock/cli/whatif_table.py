"""What other algorithms would have done, as a table for the terminal or as plain lines."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.table import Table

    from penstock.learner.whatif import Comparison, Row

_SPREAD = ("grad_norm", "cosine", "whatif/ess")
"""Columns of the drawn table that show it; all have it where the output is piped."""


@contextmanager
def bar() -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on standard error while it is a terminal; called with steps done, steps in all, and what is done
    now."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as drawn:
        task = drawn.add_task("reading the archive", total=None)

        def progress(done: int, of: int, what: str) -> None:
            drawn.update(task, completed=done, total=of, description=what)

        yield progress


def show(comparison: Comparison, console: Console, remarks: Console) -> None:
    """A drawn table on a terminal; where the output is piped, columns between tabs. `remarks` gets the rest."""
    from penstock.learner.whatif import COLUMNS

    computed = [row for row in comparison.rows if not row.reason]
    if console.is_terminal:
        console.print(_table(comparison, computed))
    else:
        for line in _plain(computed, list(COLUMNS), [heading for heading, _ in COLUMNS.values()]):
            console.file.write(line + "\n")  # rich would turn tabs into spaces
    for row in comparison.rows:
        if row.reason:
            remarks.print(f"{row.label}: {row.reason}", soft_wrap=True, markup=False, highlight=False)
    for note in comparison.notes:
        remarks.print(f"note: {note}", soft_wrap=True, markup=False, highlight=False)


def _table(comparison: Comparison, rows: list[Row]) -> Table:
    """Without the columns in which every row has nothing or 0."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from penstock.learner.whatif import COLUMNS

    names = [name for name in COLUMNS if any(row.mean(name) != 0 and math.isfinite(row.mean(name)) for row in rows)]
    table = Table(box=SIMPLE_HEAD, title=_title(comparison), title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("variant", overflow="fold", min_width=16)
    for name in names:
        table.add_column(COLUMNS[name][0].replace(" ", "\n"), justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        table.add_row(row.label, *(_text(row.mean(name), row.spread(name), name in _SPREAD) for name in names))
    return table


def _title(comparison: Comparison) -> str:
    steps = comparison.steps
    over = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps, {steps[0]} to {steps[-1]}: mean ± spread"
    where = "the weights a step started from" if comparison.at == "start" else "the weights a step has led to"
    return f"gradients at {where}; {over}"


def _text(mean: float, spread: float, with_spread: bool) -> str:
    if not math.isfinite(mean):
        return ""
    # A spread that is rounding alone says nothing.
    shown = with_spread and math.isfinite(spread) and spread > 1e-9 * abs(mean)
    return f"{mean:.3g}" + (f" ±{spread:.1g}" if shown else "")


def _plain(rows: list[Row], names: list[str], headings: list[str]) -> Iterator[str]:
    """Means and spreads in columns of their own, so that a spreadsheet reads them."""
    yield "\t".join(["variant", *(text for h in headings for text in (h, f"{h} spread"))])
    for row in rows:
        yield "\t".join([row.label, *(_number(v) for name in names for v in (row.mean(name), row.spread(name)))])


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
