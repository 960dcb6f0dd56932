"""What other algorithms would have done, as a table for the terminal or as plain lines."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from penstock.learner.whatif import Comparison, Row


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
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from penstock.learner.whatif import COLUMNS

    names = [name for name in COLUMNS if any(math.isfinite(row.mean(name)) for row in comparison.rows)]
    computed = [row for row in comparison.rows if not row.reason]
    if not console.is_terminal:
        for line in _plain(computed, names, [COLUMNS[name][0] for name in names]):
            console.file.write(line + "\n")  # rich would turn tabs into spaces
    else:
        table = Table(box=SIMPLE_HEAD, title=_title(comparison), title_justify="left")
        table.add_column("variant", overflow="fold")
        for name in names:
            table.add_column(COLUMNS[name][0], justify="right")
        for row in computed:
            table.add_row(row.label, *(_text(row.mean(name), row.spread(name)) for name in names))
        console.print(table)
    for row in comparison.rows:
        if row.reason:
            remarks.print(f"{row.label}: {row.reason}", soft_wrap=True, markup=False, highlight=False)
    for note in comparison.notes:
        remarks.print(f"note: {note}", soft_wrap=True, markup=False, highlight=False)


def _title(comparison: Comparison) -> str:
    steps = comparison.steps
    over = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps, {steps[0]} to {steps[-1]}: mean ± spread"
    where = "the weights a step started from" if comparison.at == "start" else "the weights a step has led to"
    return f"gradients at {where}; {over}"


def _text(mean: float, spread: float) -> str:
    if not math.isfinite(mean):
        return ""
    return f"{mean:.4g}" + (f" ± {spread:.2g}" if math.isfinite(spread) else "")


def _plain(rows: list[Row], names: list[str], headings: list[str]) -> Iterator[str]:
    """Means and spreads in columns of their own, so that a spreadsheet reads them."""
    yield "\t".join(["variant", *(text for h in headings for text in (h, f"{h} spread"))])
    for row in rows:
        yield "\t".join([row.label, *(_number(v) for name in names for v in (row.mean(name), row.spread(name)))])


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
