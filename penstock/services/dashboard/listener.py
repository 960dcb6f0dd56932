"""The page's socket: held from the choice of its port on, so that nobody else can get it in between."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from penstock.services.dashboard.config import DashboardSection, PageError, token_for

BACKLOG = 128


@dataclass(frozen=True)
class Listener:
    """A socket that listens already: nobody else can get its port, and requests that come early wait in it."""

    socket: socket.socket
    host: str

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    @property
    def address(self) -> str:
        """For a browser on this machine; of a socket that listens everywhere under this machine's name."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"


def listen(host: str, port: int) -> Listener:
    """Raises PageError, which says what to do, when the port is taken or the address is not this machine's."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise PageError(f"{host!r} is no address of this machine ({error.strerror}); take 127.0.0.1") from error
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(where)
        held.listen(BACKLOG)
    except OSError as error:
        held.close()
        raise PageError(_why(host, port, error)) from error
    return Listener(held, host)


def problems(section: DashboardSection) -> list[tuple[str, str]]:
    """What would keep the page from being served here and now, as (key within the section, text)."""
    if not section.enabled:
        return []
    found = []
    try:
        token_for(section.host, section.token_env)
    except PageError as error:
        found.append(("token_env", str(error)))
    try:
        listen(section.host, section.port).socket.close()
    except PageError as error:
        found.append(("port" if section.port else "host", str(error)))
    return found


def _why(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; take another one, or 0 for any that is free"
    if error.errno == errno.EACCES:
        return f"port {port} may not be used by this user; take one from 1024 on, or 0 for any that is free"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine; take 127.0.0.1"
    return f"the page cannot listen on {host}, port {port}: {error.strerror}"
