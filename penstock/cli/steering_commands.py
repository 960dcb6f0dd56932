"""The commands that change a run while it goes on. Each is one line of words made into a record, and sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.options import RUNS, Address, RunName, RunsDir

if TYPE_CHECKING:
    from penstock.services.control import Command

app = typer.Typer()


def _send(verb: str, commands: Sequence[Command], run: str | None, runs_dir: Path, address: str | None) -> None:
    from penstock.cli import steer

    for answer in steer.send(verb, commands, run, runs_dir, address):
        typer.echo(answer)


@app.command()
def scale(
    wanted: Annotated[list[str], typer.Argument(metavar="ROLE=COUNT…", help="As rollout=4.", show_default=False)],
    run: RunName = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
) -> None:
    """Let rollout workers and scorers join or leave a run while it goes on."""
    from penstock.cli import steer

    _send("scale", steer.scales(wanted), run, runs_dir, address)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As rollout-2.", show_default=False)],
    run: RunName = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
) -> None:
    """Let one worker of a run hand on what it holds and leave."""
    from penstock.services.control import Remove

    _send("remove", [Remove(name)], run, runs_dir, address)


@app.command()
def pause(run: RunName = None, runs_dir: RunsDir = RUNS, address: Address = None) -> None:
    """Let a run finish what it generates, and begin no prompt and no train step until `go`."""
    from penstock.services.control import Pause

    _send("pause", [Pause()], run, runs_dir, address)


@app.command()
def go(run: RunName = None, runs_dir: RunsDir = RUNS, address: Address = None) -> None:
    """Let a run that was paused go on."""
    from penstock.services.control import Resume

    _send("go", [Resume()], run, runs_dir, address)


@app.command()
def checkpoint(run: RunName = None, runs_dir: RunsDir = RUNS, address: Address = None) -> None:
    """Have a run write a checkpoint after the step that is under way."""
    from penstock.services.control import Checkpoint

    _send("checkpoint", [Checkpoint()], run, runs_dir, address)


@app.command()
def gate(
    state: Annotated[str, typer.Argument(metavar="open|close", show_default=False)],
    run: RunName = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
) -> None:
    """Close the staleness gate of a run by hand, so that no prompt begins; or leave it to the lag again."""
    from penstock.cli import steer

    _send("gate", [steer.gate(state)], run, runs_dir, address)


@app.command("set")
def turn(
    settings: Annotated[list[str], typer.Argument(metavar="NAME=VALUE…", help="As kl.coef=0.01 or max_lag=4.")],
    run: RunName = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
) -> None:
    """Train on with another coefficient: of the KL, the clip, the entropy, the learning rate, the bound on the lag."""
    from penstock.cli import steer

    _send("set", steer.settings(settings), run, runs_dir, address)


@app.command()
def rollback(
    until: Annotated[int | None, typer.Option(min=0, help="Of at most this step; by default the newest.")] = None,
    run: RunName = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
) -> None:
    """Have a run go back to a checkpoint, and go on from there."""
    from penstock.services.control import RollBack

    _send("rollback", [RollBack(until)], run, runs_dir, address)


@app.command()
def stop(
    why: Annotated[str, typer.Option(help="For the run's summary.")] = "asked for",
    run: RunName = None,
    runs_dir: RunsDir = RUNS,
    address: Address = None,
) -> None:
    """End a run after the step that is under way, with a checkpoint and a summary."""
    from penstock.services.control import Stop

    _send("stop", [Stop(why)], run, runs_dir, address)
