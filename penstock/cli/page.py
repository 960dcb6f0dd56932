"""`penstock dashboard`: which run, on which port, and the words on the terminal."""

from __future__ import annotations

from pathlib import Path

import typer

from penstock.deploy.page import serve_page
from penstock.services.dashboard.config import PageError, is_local, token_for
from penstock.services.dashboard.listener import Listener, listen
from penstock.services.rundir import RunDir, RunDirError

USUAL_PORT = 8400


def serve(run_dir: Path | None, name: Path | None, runs_dir: Path, host: str, port: int | None, token_env: str) -> None:
    """Until Ctrl-C. Raises RunDirError and PageError before anything is served."""
    directory = find(run_dir, name, runs_dir)
    token = token_for(host, token_env)
    listener = choose(host, port)
    typer.echo(f"[penstock] the page of {directory.path} is at {listener.address}")
    if token is not None:
        typer.echo(f"[penstock] it asks for the token in {token_env}")
    if not is_local(host):
        typer.echo("[penstock] what goes over the network is not encrypted; an ssh tunnel to 127.0.0.1 is")
    serve_page(directory, listener, token)


def find(run_dir: Path | None, name: Path | None, runs_dir: Path) -> RunDir:
    """The run that is meant, by default the newest. Raises RunDirError."""
    if run_dir is not None and name is not None:
        raise RunDirError(f"RUN_DIR {run_dir} and --run {name} both name a run; give one of them")
    given = run_dir or name
    if given is None:
        return RunDir.newest(runs_dir)
    inside = runs_dir / given
    return RunDir.open(inside if not given.exists() and inside.is_dir() else given)


def choose(host: str, port: int | None) -> Listener:
    """The port that was asked for, or the usual one, or when that is in use any that is free. Raises PageError."""
    if port is not None:
        return listen(host, port)
    try:
        return listen(host, USUAL_PORT)
    except PageError:
        return listen(host, 0)
