"""A port that nobody else is given between the moment it is chosen and the moment its server listens on it."""

from __future__ import annotations

import socket
from types import TracebackType


class HeldPort:
    """A port that is free at `host` and at every other address of this machine, bound but not listened on until
    `release`.

    The kernel gives a bound port to nobody who asks for a free one, nor takes it for the near end of a connection. A
    server that sets SO_REUSEADDR, as redis-server, torch's store and nearly all others do, may listen on it meanwhile.

    At every other address, too: torch's store listens at all of them, and a port that is free at one may be the near
    end of somebody's connection at another.
    """

    def __init__(self, host: str) -> None:
        """Raises OSError where `host` is no address of this machine."""
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as asking:
            asking.bind(address)
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(("", 0))
        except OSError:
            self._socket.close()
            raise
        self.number: int = self._socket.getsockname()[1]

    def release(self) -> None:
        """Give it up; what listens on it goes on."""
        self._socket.close()

    def __enter__(self) -> HeldPort:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()
