"""The `store` section of a run file."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, Field

from penstock.services.settings import VARIABLE, Section, on_resume

Fsync = Literal["always", "everysec", "never"]
"""When the private server's append-only file is forced to disk, and what is promised for every transition that
was acknowledged. A disk that is full is outside all three promises.

- `always`: written and synced before the reply. Survives kill -9 of the server and loss of power of the host.
- `never`: written before the reply, synced when the kernel likes (Linux: within about 30 seconds). Survives kill -9
  of the server; a host that loses power loses the last seconds.
- `everysec`: synced once a second in the background. While such a sync is slow, Redis postpones the *write* as well
  and replies all the same, up to two seconds: kill -9 at that moment loses acknowledged transitions. So this is
  weaker than `never` against a killed server, and stronger against loss of power: at most about two seconds.
"""

OLDEST = (6, 2)
"""The oldest Redis server whose commands and script replication the scripts rely on."""

SCHEMES = ("redis", "rediss", "unix")


def check_url(url: str | None) -> str | None:
    """`url` if it is one that a store can have. Raises ValueError, never with a password in the text."""
    if url is None:
        return url
    parts = urlsplit(url)
    if (
        parts.password is not None
        or "password" in parse_qs(parts.query)
        or (
            parts.scheme != "unix" and "@" in parts.path  # a password with a slash in it
        )
    ):
        raise ValueError(
            "a password does not belong in the url, it would reach config.yaml and logs; put it into the environment "
            "variable that store.password_env names (PENSTOCK_STORE_PASSWORD)"
        )
    if parts.scheme not in SCHEMES:
        raise ValueError(
            f"expected redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH, found scheme {parts.scheme!r}"
        )
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"the port in the url is no number from 1 to 65535: {parts.netloc!r}") from error
    if parts.scheme != "unix" and (port == 0 or not re.fullmatch(r"/?\d*", parts.path)):
        wrong = "port 0" if port == 0 else repr(parts.path)
        raise ValueError(f"expected {parts.scheme}://HOST:PORT/DB, and DB is a number, as in /0; found {wrong}")
    if parts.scheme == "unix" and not parts.path:
        raise ValueError("a unix url names the socket's path: unix:///run/redis/redis.sock")
    if parts.scheme != "unix" and not parts.hostname:
        raise ValueError(f"{parts.scheme}:// needs a host: {parts.scheme}://localhost:6379/0")
    return url


class StoreSection(Section):
    """Where the ledger lives and what it promises."""

    url: Annotated[str | None, AfterValidator(check_url)] = on_resume(None)
    """Redis server: redis://, rediss:// (TLS) or unix://. Empty starts a private server for the run, whose data lies in
    the run directory. May change on resume, since a server can move; a server without the run's data counts as lost."""

    password_env: str = Field("PENSTOCK_STORE_PASSWORD", pattern=VARIABLE)
    """Name of the environment variable that holds the password of `url`; no password when the variable is unset."""

    fsync: Fsync = on_resume("never")
    """Durability of the private server: `never` keeps every acknowledged transition through kill -9 of the server,
    `always` also through loss of power (every call then waits for the disk), `everysec` is the middle that may lose the
    last two seconds either way. A server given by `url` keeps its own setting."""

    max_bytes: int = on_resume(2 * 1024**3, ge=1024**2)
    """The gate closes while the payloads in the store are larger than this (bytes). It must hold what is outstanding
    and what was used since the last checkpoint: (max_lag + 1 + steps between checkpoints) × groups per step × size of
    a group. At least 1 MiB, below which hardly one step's groups fit."""

    max_restarts: int = on_resume(10, ge=0)
    """How often the private server is started again after it died. One that dies more often has a cause that starting
    again does not mend, such as a full disk, and ends the run with it."""

    deadline: float = on_resume(30.0, ge=1.0, le=3600.0)
    """Seconds that a call keeps trying while the server is away or restarts, before it is an error. At least 1, the
    time a server needs to come back. A private server that is started again has as long to read its file."""

    def password(self) -> str | None:
        """The password from the environment; None when the variable is not set."""
        return os.environ.get(self.password_env)
