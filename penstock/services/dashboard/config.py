"""The `dashboard` section of a run file."""

from __future__ import annotations

import ipaddress
import os

from penstock.services.contracts import PenstockError
from penstock.services.settings import VARIABLE, Section, on_resume

TOKEN_ENV = "PENSTOCK_DASHBOARD_TOKEN"
"""Environment variable of the token, unless another one is named."""
SHORTEST_TOKEN = 16
"""Characters; a shorter one can be guessed by trying."""


class PageError(PenstockError):
    """A page that cannot be served as asked; the text says why and what to do."""


class DashboardSection(Section):
    """The page of a run, served beside it by a process of its own. `penstock dashboard` serves the same page of any run
    directory."""

    enabled: bool = on_resume(False)
    """Serve the page while the run goes on; its address is printed and is the event `dashboard`."""
    host: str = on_resume("127.0.0.1", min_length=1)
    """Address to listen on. Any but this machine's own (127.0.0.1, ::1, localhost) demands a token."""
    port: int = on_resume(0, ge=0, le=65535)
    """Port to listen on; 0 takes one that is free."""
    token_env: str = on_resume(TOKEN_ENV, pattern=VARIABLE)
    """Name of the environment variable that holds the token which the page asks for. Where `host` is this machine's
    own and the variable is unset, the page answers without one, to the user who serves it and to root only."""


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address to listen on."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def token_for(host: str, token_env: str) -> str | None:
    """The token from the environment. Raises PageError when `host` demands one that is missing, or for a short one."""
    token = os.environ.get(token_env) or None
    remedy = f"set one with: export {token_env}=$(openssl rand -hex 16)"
    if token is None and not is_local(host):
        raise PageError(
            f"the page on {host} can be reached from other machines and steers the run, so it needs a token, and the "
            f"environment variable {token_env} is not set; {remedy}, or serve it on 127.0.0.1"
        )
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise PageError(
            f"the token in {token_env} has {len(token)} characters, at least {SHORTEST_TOKEN} are needed; {remedy}"
        )
    return token
