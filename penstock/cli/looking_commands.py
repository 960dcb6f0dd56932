"""The commands that look at runs and change nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from penstock.cli.options import RUNS, Address, RunArgument, RunName, RunsDir

if TYPE_CHECKING:
    from penstock.services.rundir import RunEvent

app = typer.Typer()


@app.command()
def status(
    named: RunArgument = None,
    run: RunName = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
    json: Annotated[bool, typer.Option("--json", help="The facts as JSON, for scripts.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until the run is over.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks, with --watch.")] = 1.0,
) -> None:
    """Show what runs: version, ledger, lag, tokens/s, who is alive."""
    from rich.console import Console

    from penstock.cli import watch as watching
    from penstock.cli.display import panel
    from penstock.deploy.reach import reach, the_one
    from penstock.deploy.status import Status, as_json, status_of

    with reach(the_one(named, run), runs_dir, address) as found:

        def look() -> Status:
            found.refresh()
            return status_of(found.directory, found.place if found.place.node else None)

        if watch:
            with contextlib.suppress(KeyboardInterrupt):
                watching.watch(look, every, watching.make_screen(Console(), json))
            return
        facts = look()
    if json:
        import msgspec

        typer.echo(msgspec.json.encode(as_json(facts)).decode())
        return
    console = Console()
    console.print(watching.head(facts), highlight=False, soft_wrap=True)
    if facts.view is not None:
        console.print(panel(facts.view))


@app.command()
def tail(
    named: RunArgument = None,
    run: RunName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Also what comes, until the run is over.")] = False,
    kind: Annotated[list[str] | None, typer.Option("--kind", "-k", help="Only this kind; may be repeated.")] = None,
    since: Annotated[str | None, typer.Option(help="As 10m (ago), 14:03 or 2026-11-26T14:03.")] = None,
    lines: Annotated[int | None, typer.Option("--lines", "-n", min=0, help="Only so many of the past.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Whole events as JSON, one a line.")] = False,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
) -> None:
    """Show a run's events, one a line: starts, deaths, checkpoints, warnings, what was asked of it."""
    import time

    from rich.console import Console

    from penstock.cli import tail as tailing
    from penstock.deploy.reach import STORY, reach, the_one

    wanted = tailing.Wanted(frozenset(kind or ()), tailing.moment(since, time.time()) if since else None, lines)
    console, remarks = Console(highlight=False), Console(stderr=True, highlight=False)

    def show(event: RunEvent, line: bytes) -> None:
        if json:
            typer.echo(line.decode().rstrip())
        else:
            console.print(tailing.line_of(event), soft_wrap=True)

    def note(text: str) -> None:
        remarks.print(text, soft_wrap=True, markup=False)

    with reach(the_one(named, run), runs_dir, address, STORY) as found:
        fresh = found.kept_fresh(tailing.LOOK) if follow else contextlib.nullcontext()
        with contextlib.suppress(KeyboardInterrupt), fresh:
            tailing.tail(found.directory, wanted, follow, show, note)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run directory.", show_default=False)],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one.", show_default=False)],
    metric: Annotated[
        list[str] | None, typer.Option("--metric", "-m", help="A metric of both along the way; may be repeated.")
    ] = None,
    over: Annotated[Literal["steps", "tokens", "seconds"], typer.Option(help="Along what.")] = "steps",
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """Set two runs side by side: run files, speed, lag, evaluations, accidents, and any metric."""
    from rich.console import Console

    from penstock.cli import compare_table
    from penstock.services.dashboard import comparison
    from penstock.services.rundir import RunDir

    sides = [comparison.Side.read(RunDir.open(run)) for run in (run_a, run_b)]
    curves = [comparison.curves(sides, name, over) for name in metric or ()]
    found = comparison.compare(*sides)
    if json:
        import msgspec

        typer.echo(msgspec.json.encode({"comparison": found, "curves": curves}).decode())
        return
    compare_table.show(found, curves, Console())


@app.command()
def dashboard(
    named: RunArgument = None,
    run: RunName = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine it demands a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: any that is free. By default 8400, or else a free one.")
    ] = None,
    token_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="Environment variable that holds the token.")
    ] = "PENSTOCK_DASHBOARD_TOKEN",
) -> None:
    """Serve the page of a run, running or ended: watch it and steer it, until Ctrl-C."""
    from penstock.cli import page
    from penstock.deploy.reach import PAGE, reach, the_one

    with reach(the_one(named, run), runs_dir, address, PAGE) as found, found.kept_fresh(page.LOOK):
        page.serve(found, host, port, token_env)


@app.command()
def runs(
    runs_dir: RunsDir = RUNS,
    address: Address = None,
    json: Annotated[bool, typer.Option("--json", help="The same as JSON, for scripts.")] = False,
) -> None:
    """List runs, here and on a Ray cluster: how they stand, at which step, when they were last heard of."""
    from penstock.deploy.listing import listing

    rows = listing(runs_dir, address)
    if json:
        import msgspec

        typer.echo(msgspec.json.encode(rows).decode())
        return
    from rich.console import Console

    from penstock.cli.runs_table import show

    show(rows, Console())
