"""Which user of this machine is at the other end of a connection from it: the kernel's table of sockets says.

An address of this machine alone is still open to all of its users, and so to anybody's program on it.
"""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

Address = tuple[str, int]
"""Host and port."""
_TABLES = {4: Path("/proc/net/tcp"), 6: Path("/proc/net/tcp6")}
_ESTABLISHED = "01"
"""A socket that its process has closed already is listed as root's for a while."""


def user_of(client: Address, server: Address) -> int | None:
    """The uid of the process that holds the client's end of the connection; None where that cannot be known: it is on
    another machine, in another network namespace, or gone."""
    try:
        version = ipaddress.ip_address(client[0]).version
        ends = [_as_listed(client), _as_listed(server)]
        with _TABLES[version].open() as table:
            next(table)
            for line in table:
                fields = line.split()
                if fields[1:3] == ends and fields[3] == _ESTABLISHED:
                    return int(fields[7])
    except (OSError, ValueError):
        return None
    return None


def _as_listed(address: Address) -> str:
    """As the table writes it: words of four bytes, each in the machine's own order, in hexadecimal."""
    packed = ipaddress.ip_address(address[0]).packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{address[1]:04X}"
