"""The doctor's facts as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.deploy.doctor import Fact

if TYPE_CHECKING:
    from rich.table import Table

_MARKS = {"good": "[green]✓[/]", "doubtful": "[yellow]![/]", "broken": "[red]✗[/]"}


def table(facts: Sequence[Fact]) -> Table:
    """One row per fact, with the remedy under what is amiss."""
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(box=None, padding=(0, 1), show_header=False)
    for fact in facts:
        found = escape(fact.found) + (f"\n[yellow]→ {escape(fact.remedy)}[/]" if fact.remedy else "")
        drawn.add_row(_MARKS[fact.state], fact.name, found)
    return drawn
