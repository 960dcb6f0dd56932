"""Runs as a table for the terminal, or as plain columns where the output is piped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.deploy.status import duration

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.deploy.listing import Row

HEADS = ("run", "state", "step", "age", "directory")


def show(rows: Sequence[Row], console: Console) -> None:
    """Says so where there is none."""
    cells = [_cells(row) for row in rows]
    if not console.is_terminal:
        for line in (HEADS, *cells):
            console.file.write("\t".join(line) + "\n")
        return
    if not rows:
        console.print("no runs here; start one with: penstock train RUN.yaml", highlight=False)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for head in HEADS:
        table.add_column(head, justify="right" if head in ("step", "age") else "left", overflow="fold")
    for line in cells:
        table.add_row(*map(escape, line))
    console.print(table)


def _cells(row: Row) -> tuple[str, ...]:
    total = f"/{row.steps_total}" if row.steps_total is not None else ""
    step = "" if row.step is None else f"{row.step}{total}"
    return row.name, row.state, step, duration(max(0.0, row.age)), row.place
