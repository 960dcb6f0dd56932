"""A run on the terminal: a live panel where there is one, plain lines where output goes to a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING

from penstock.deploy.status import duration
from penstock.deploy.view import ENDED, Controls, RunView, WorkerView
from penstock.services.headlines import HEADLINES, count, shown

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def headline(view: RunView) -> str:
    """One line that says where the run is."""
    total = f"/{view.steps_total}" if view.steps_total is not None else ""
    parts = [f"step {view.step}{total}", f"version {view.version}"]
    for entry in HEADLINES:
        value = shown(entry, view.metrics)
        if value is not None:
            parts.append(f"{entry.label} {value}")
    if view.ledger is not None and view.ledger.refused:
        parts.append(f"refused by workers: {_by_reason(view.ledger.refused)}")
    if view.time_left is not None:
        parts.append(f"left {duration(view.time_left)}")
    return "  ".join(parts)


def _by_reason(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {number}" for reason, number in sorted(counts.items()))


class PlainLines:
    """A line per step, and one whenever the phase, the message or a worker's state changes."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stdout
        self._said: tuple[str, str] = ("", "")
        self._step = -1
        self._placed = False
        self._troubled: frozenset[str] = frozenset()

    def update(self, view: RunView) -> None:
        """Print what is new since the last call; first of all, where the run writes."""
        if view.run_dir and not self._placed:
            self._placed = True
            self._print(f"run directory: {view.run_dir}")
        if (view.phase, view.message) != self._said:
            self._said = (view.phase, view.message)
            self._print(view.phase + (f": {view.message}" if view.message else ""))
        if view.step > self._step and view.metrics:
            self._step = view.step
            self._print(headline(view))
        troubled = frozenset(f"{w.name} {w.state}" for w in view.workers if w.state.startswith("dead"))
        for trouble in sorted(troubled - self._troubled):
            self._print(trouble)
        self._troubled = troubled

    def _print(self, text: str) -> None:
        print(f"[penstock] {text}", file=self._stream, flush=True)  # this is what the class is for

    def close(self) -> None:
        """Nothing to take down."""


class LivePanel:
    """The same panel redrawn in place; the last one stays on the screen."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._live = Live(console=console, auto_refresh=False, transient=False, redirect_stdout=True)
        self._live.start()

    def update(self, view: RunView) -> None:
        """Redraw."""
        self._live.update(panel(view), refresh=True)

    def close(self) -> None:
        """Leave the last panel on the screen and give the terminal back."""
        self._live.stop()


def make_display() -> PlainLines | LivePanel:
    """A live panel on a terminal, plain lines elsewhere."""
    from rich.console import Console

    console = Console()
    return LivePanel(console) if console.is_terminal and not console.is_dumb_terminal else PlainLines()


# --- the panel ------------------------------------------------------------------------------------


def panel(view: RunView) -> RenderableType:
    """Everything about one instant: progress, numbers, ledger, workers."""
    from rich.console import Group
    from rich.panel import Panel

    parts: list[RenderableType] = [_progress(view), _numbers(view)]
    if view.phase in ("training", "evaluating") and (held := _held(view.controls)):
        parts.append(f"[yellow]{_plain(held)}[/]")
    if view.page:
        parts.append(f"[dim]page:[/] {_plain(view.page)}")
    if view.ledger is not None:
        parts.append(_ledger(view))
    if view.workers:
        parts.append(_workers(view.workers))
    if view.scrape and view.phase not in ENDED:
        parts.append(_scrape(view))
    colour = {"failed": "red", "finished": "green", "stopped": "yellow"}.get(view.phase, "cyan")
    subtitle = _plain(view.run_dir) if view.run_dir else None
    title = f"[bold]{view.name or 'penstock'}[/] · {view.phase}"
    return Panel(Group(*parts), title=title, subtitle=subtitle, border_style=colour, padding=(0, 1))


def _held(controls: Controls) -> str:
    """What stands still because somebody has asked for it."""
    paused = f"paused by {controls.paused_by}; `penstock go` lets it go on" if controls.paused_by else ""
    closed = "" if controls.gate_open else "the gate is held closed; `penstock gate open` leaves it to the lag"
    return "; ".join(filter(None, (paused, closed)))


def _progress(view: RunView) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    row = Table.grid(padding=(0, 2))
    total = f" / {view.steps_total}" if view.steps_total is not None else ""
    left = f"{duration(view.time_left)} left" if view.time_left is not None and view.phase not in ENDED else ""
    gone = duration(max(0.0, view.at - view.started)) if view.started else ""
    bar = ProgressBar(total=view.steps_total or 1, completed=view.step if view.steps_total else 0, width=30)
    row.add_row(f"step [bold]{view.step}[/]{total}", bar, f"version {view.version}", gone, left)
    if view.message:
        whole = Table.grid()
        whole.add_row(row)
        whole.add_row(f"[yellow]{_plain(view.message)}[/]")
        return whole
    return row


def _plain(text: str) -> str:
    """Text from elsewhere: its square brackets are no markup."""
    from rich.markup import escape

    return escape(text)


def _numbers(view: RunView) -> RenderableType:
    from rich.table import Table

    values = [(entry.label, text) for entry in HEADLINES if (text := shown(entry, view.metrics)) is not None]
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for label, _ in values:
        table.add_column(label, justify="right", header_style="dim")
    if values:
        table.add_row(*[text for _, text in values])
    return table


def _ledger(view: RunView) -> RenderableType:
    from rich.table import Table

    assert view.ledger is not None
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    cells = {"issued": view.ledger.issued, **view.ledger.by_state}
    for name in cells:
        table.add_column(name, justify="right", header_style="dim")
    table.add_row(*[str(value) for value in cells.values()])
    if not view.ledger.dropped:
        return table
    whole = Table.grid()
    whole.add_row(table)
    whole.add_row(f"[dim]dropped:[/] {_by_reason(view.ledger.dropped)}")
    for reason, number in sorted(view.ledger.refused.items()):
        cause = view.ledger.causes.get(reason) or "no cause was given"
        whole.add_row(f"[dim]by workers:[/] {number} {reason}, the last since {_plain(cause)}")
    return whole


def _scrape(view: RunView) -> RenderableType:
    from rich.text import Text

    return Text("metrics for Prometheus: " + ", ".join(f"http://{at}/metrics" for at in view.scrape), style="dim")


def _in_flight(worker: WorkerView) -> str:
    tokens = worker.tokens_in_flight
    return f"{worker.in_flight} ({count(tokens)} tok)" if tokens else str(worker.in_flight)


def _workers(workers: tuple[WorkerView, ...]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for name, justify in (
        ("worker", "left"),
        ("state", "left"),
        ("version", "right"),
        ("in flight", "right"),
        ("tok/s", "right"),
        ("pid", "right"),
        ("node", "left"),
        ("restarts", "right"),
    ):
        table.add_column(name, justify=justify, header_style="dim")  # type: ignore[arg-type]  # literal by construction
    for worker in workers:
        colour = (
            "red" if worker.state.startswith("dead") else "yellow" if worker.state.startswith("starting") else "none"
        )
        table.add_row(
            worker.name,
            f"[{colour}]{_plain(worker.state)}[/]",
            worker.version,
            _in_flight(worker) if worker.role == "rollout" else "",
            count(worker.tokens_per_second) if worker.tokens_per_second else "",
            str(worker.pid or ""),
            worker.node,
            str(worker.restarts) if worker.restarts else "",
        )
    return table
