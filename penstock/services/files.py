"""Files that are written and read while others do the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: bytes, sync: bool = True) -> None:
    """Replace `path` as a whole; with `sync` it also survives a power cut."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(path)


def append_line(path: Path, line: bytes) -> None:
    """One write call with O_APPEND: lines of several writers never mix."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(handle, line)
    except OSError as error:
        error.filename = str(path)  # the system knows no name of a descriptor
        raise
    finally:
        os.close(handle)


def whole_lines(path: Path) -> Iterator[bytes]:
    """With their ends; what is still being written, or was cut off, is left out."""
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
