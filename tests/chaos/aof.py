"""Redis' append-only file, read while it grows: everything that the server has done, in its order.

The file holds effects, not calls: what a script has changed is one transaction of plain writes. Whoever reads it needs
neither the scripts nor their client, and is told the same after the server was killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_TAIL, _LEAST = 4096, 64
"""Bytes by which a place in a file is found again, at most and at least."""

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
    """Reads what has come since the last time, also when the server compacts its file meanwhile."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the data folder of the server."""
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._read = 0
        self._tail = b""
        """The end of what was read."""

    def new(self) -> Iterator[Transaction]:
        """Whole transactions, oldest first; none while there is no file. Raises AofError."""
        path = self._path()
        if path is None:
            return
        if self._file is None:
            self._file = path.open("rb")
        yield from self._rest()
        if path.stat().st_ino != os.fstat(self._file.fileno()).st_ino:
            yield from self._rest()  # nothing is written any more to a file that was replaced
            self._go_on_in(path)
            yield from self._rest()

    def _rest(self) -> Iterator[Transaction]:
        assert self._file is not None
        size = os.fstat(self._file.fileno()).st_size
        if size < self._read:
            raise AofError(f"{self._file.name} has {size} bytes, and {self._read} had been read: writes were lost")
        self._file.seek(self._read)
        data = self._file.read()
        found, taken = parse(data)
        self._read += taken
        self._tail = (self._tail + data[:taken])[-_TAIL:]
        yield from found

    def _go_on_in(self, path: Path) -> None:
        """Redis 7 begins another file. Redis 6 makes one of what is there now and of all that was written since it
        began to, the end of which is the end of the file before; what comes after that is new."""
        assert self._file is not None
        self._file.close()
        self._file = path.open("rb")
        self._read = 0
        if path.suffixes[-2:] == [".incr", ".aof"]:
            return
        data, length = self._file.read(), len(self._tail)
        while length >= _LEAST:
            if (found := data.find(self._tail[-length:])) >= 0:
                self._read = found + length
                return
            length //= 2
        raise AofError(f"{path} was compacted, and what had been read is not found in it: something may be missing")

    def _path(self) -> Path | None:
        """Redis 7 keeps the file in a folder, in parts."""
        parts = list(self._folder.glob("appendonlydir/*.incr.aof"))
        plain = self._folder / "appendonly.aof"
        newest = max(parts, key=lambda part: int(part.name.split(".")[-3]), default=None)
        return newest or (plain if plain.exists() else None)
