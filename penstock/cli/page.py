"""`penstock dashboard`: which run, on which port, and the words on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from penstock.deploy.page import serve_page
from penstock.services.dashboard.config import PageError, is_local, token_for
from penstock.services.dashboard.listener import Listener, listen

if TYPE_CHECKING:
    from penstock.deploy.reach import Reached

USUAL_PORT = 8400
LOOK = 0.5
"""Seconds between looks at a run that goes on elsewhere."""


def serve(found: Reached, host: str, port: int | None, token_env: str) -> None:
    """Until Ctrl-C. Raises PageError before anything is served."""
    token = token_for(host, token_env)
    listener = choose(host, port)
    typer.echo(f"[penstock] the page of {found.place} is at {listener.address}")
    if token is not None:
        typer.echo(f"[penstock] it asks for the token in {token_env}")
    if not is_local(host):
        typer.echo("[penstock] what goes over the network is not encrypted; an ssh tunnel to 127.0.0.1 is")
    serve_page(found.directory, listener, token, found.control, found.place)


def choose(host: str, port: int | None) -> Listener:
    """The port that was asked for, or the usual one, or when that is in use any that is free. Raises PageError."""
    if port is not None:
        return listen(host, port)
    try:
        return listen(host, USUAL_PORT)
    except PageError:
        return listen(host, 0)
