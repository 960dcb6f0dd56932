"""Redis' append-only file, read while it grows: everything that the server has done, in its order.

The file holds effects, not calls: what a script has changed is one transaction of plain writes. Whoever reads it needs
neither the scripts nor their client, and is told the same after the server was killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

Command = tuple[bytes, ...]
Transaction = tuple[Command, ...]


class AofError(Exception):
    """The file is not what a running server leaves: cut short behind what was read, replaced, or no commands."""


def parse(data: bytes) -> tuple[list[Transaction], int]:
    """The whole transactions at the beginning of `data`, and how many bytes they take. What is cut off at the end is
    left for later, as the server itself leaves it out when it starts again."""
    found: list[Transaction] = []
    at = taken = 0
    within: list[Command] | None = None
    while (read := _command(data, at)) is not None:
        command, at = read
        name = command[0].upper()
        if name == b"MULTI":
            within = []
        elif name == b"EXEC":
            found.append(tuple(within or ()))
            within, taken = None, at
        elif within is not None:
            within.append(command)
        else:
            found.append((command,))
            taken = at
    return found, taken


def _command(data: bytes, at: int) -> tuple[Command, int] | None:
    """One command from `at` on and where it ends; None when it is not all there."""
    line, at = _line(data, at, b"*")
    if line is None:
        return None
    parts = []
    for _ in range(line):
        size, at = _line(data, at, b"$")
        if size is None or at + size + 2 > len(data):
            return None
        parts.append(data[at : at + size])
        at += size + 2
    return tuple(parts), at


def _line(data: bytes, at: int, mark: bytes) -> tuple[int | None, int]:
    end = data.find(b"\r\n", at)
    if end < 0:
        return None, at
    if data[at : at + 1] != mark:
        raise AofError(f"expected {mark!r} and a number at byte {at}, found {data[at : at + 20]!r}")
    return int(data[at + 1 : end]), end + 2


class AofReader:
    """Reads what has come since the last time. The server must not rewrite its file meanwhile."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the data folder of the server."""
        self._folder = folder
        self._place: tuple[Path, int] | None = None
        self.read = 0
        """Bytes that were read."""

    def new(self) -> Iterator[Transaction]:
        """Whole transactions, oldest first; none while there is no file. Raises AofError."""
        path = self._path()
        if path is None:
            return
        with path.open("rb") as file:
            known = os.fstat(file.fileno())
            if self._place is not None and self._place != (path, known.st_ino):
                raise AofError(f"{path} was rewritten, so that a part of what happened is gone")
            if known.st_size < self.read:
                raise AofError(f"{path} has {known.st_size} bytes, and {self.read} had been read: writes were lost")
            self._place = (path, known.st_ino)
            file.seek(self.read)
            found, taken = parse(file.read())
        self.read += taken
        yield from found

    def _path(self) -> Path | None:
        """Redis 7 keeps the file in a folder, in parts."""
        parts = sorted(self._folder.glob("appendonlydir/*.incr.aof"))
        plain = self._folder / "appendonly.aof"
        return parts[-1] if parts else plain if plain.exists() else None
