"""Two runs side by side on the terminal, or as columns between tabs where the output is piped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.deploy.shown import shown
from penstock.services.dashboard.comparison import Comparison, Curves, Difference, Figure

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

POINTS = 12
"""Of a curve in a table."""
NOTHING = "–"


def show(found: Comparison, curves: Sequence[Curves], console: Console) -> None:
    """What came of both, what differs in their run files, and the curves that were asked for."""
    if not console.is_terminal:
        for line in _plain(found, curves):
            console.file.write("\t".join(line) + "\n")
        return
    tables = [("what came of them", _figures(found)), ("what differs in the run files", _differences(found))]
    tables += [(f"{each.metric} over {each.over}", _curves(each)) for each in curves]
    for title, table in tables:
        # A title of the table's own would be broken at the table's width.
        console.print(title, style="bold", markup=False, highlight=False)
        console.print(table)


def _figures(found: Comparison) -> Table:
    table = _table("", found.a, found.b)
    group = ""
    for figure in found.figures:
        if figure.group != group:
            table.add_row(f"[bold]{figure.group}[/]")
            group = figure.group
        table.add_row(f"  {_safe(figure.name)}", *(_safe(value_of(figure, side)) for side in ("a", "b")))
    return table


def _differences(found: Comparison) -> Table:
    table = _table("key", found.a, found.b)
    for difference in found.differences:
        table.add_row(*(_safe(text) for text in _spelled(difference)))
    if not found.differences:
        table.add_row("[dim]nothing[/]")
    return table


def _curves(found: Curves) -> Table:
    table = _table(found.over, *(curve.label for curve in found.series))
    for line in rows(found):
        table.add_row(*(NOTHING if value is None else f"{value:.4g}" for value in line))
    return table


def rows(found: Curves) -> Iterator[list[float | None]]:
    """Places on the axis and every curve there, on a straight line between its points; None beyond its ends."""
    ends = [curve.x[place] for curve in found.series if curve.x for place in (0, -1)]
    if not ends:
        return
    for at in np.linspace(min(ends), max(ends), POINTS).tolist():
        line: list[float | None] = [at]
        for curve in found.series:
            within = bool(curve.x) and curve.x[0] <= at <= curve.x[-1]
            line.append(float(np.interp(at, curve.x, curve.y)) if within else None)
        yield line


def value_of(figure: Figure, side: str) -> str:
    """With its unit; a dash where the run has none."""
    value = getattr(figure, side)
    if value is None or isinstance(value, str):
        return value or NOTHING
    text = f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1e4 else f"{value:.4g}"
    return f"{text} {figure.unit}".rstrip()


def _spelled(difference: Difference) -> tuple[str, str, str]:
    """The key and its two values, as a run file would say them."""

    def of(value: Any, side: str) -> str:
        return shown(value, difference.key) if difference.only in (None, side) else "not there"

    return difference.key, of(difference.a, "a"), of(difference.b, "b")


def _plain(found: Comparison, curves: Sequence[Curves]) -> Iterator[tuple[str, ...]]:
    yield ("", found.a, found.b)
    for figure in found.figures:
        yield (f"{figure.group}: {figure.name}", value_of(figure, "a"), value_of(figure, "b"))
    for difference in found.differences:
        key, *values = _spelled(difference)
        yield (f"run file: {key}", *values)
    for each in curves:
        yield (f"{each.metric} over {each.over}", *(curve.label for curve in each.series))
        yield from (tuple("" if value is None else f"{value:.6g}" for value in line) for line in rows(each))


def _table(*heads: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(head, overflow="fold", justify="left" if place == 0 else "right")
    return table


def _safe(text: str) -> str:
    from rich.markup import escape

    return escape(text)
