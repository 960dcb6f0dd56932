"""The commands that look at runs and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.options import RUNS, Address, RunName, RunsDir

app = typer.Typer()
RunArgument = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A run directory or a run's name; by default the newest run.")
]


@app.command()
def status(
    named: RunArgument = None,
    run: RunName = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
    json: Annotated[bool, typer.Option("--json", help="The facts as JSON, for scripts.")] = False,
) -> None:
    """Show what runs: version, ledger, lag, tokens/s, who is alive."""
    from rich.console import Console

    from penstock.cli.display import panel
    from penstock.deploy.reach import reach
    from penstock.deploy.status import status_of

    with reach(named or run, runs_dir, address) as found:
        facts = status_of(found.directory, found.place)
    if json:
        import msgspec

        typer.echo(msgspec.json.encode({"verdict": facts.verdict, "facts": facts}, enc_hook=str).decode())
        return
    console = Console()
    console.print(f"{facts.place}", highlight=False, soft_wrap=True, markup=False)
    console.print(facts.verdict, style="red" if facts.verdict.startswith("died") else None, markup=False)
    if facts.view is not None:
        console.print(panel(facts.view))


@app.command()
def runs(
    runs_dir: RunsDir = RUNS,
    address: Address = None,
    json: Annotated[bool, typer.Option("--json", help="The same as JSON, for scripts.")] = False,
) -> None:
    """List runs, here and on a Ray cluster: how they stand, at which step, when they were last heard of."""
    from penstock.deploy.listing import listing

    rows = listing(Path(runs_dir), address)
    if json:
        import msgspec

        typer.echo(msgspec.json.encode(rows).decode())
        return
    from rich.console import Console

    from penstock.cli.runs_table import show

    show(rows, Console())
