"""Files that are written and read while others do the same."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from penstock.services.contracts import PenstockError


def write_atomically(path: Path, content: bytes, sync: bool = True) -> None:
    """Replace `path` as a whole; with `sync` it also survives a power cut."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(path)


def followed(path: Path) -> Path:
    """`path` made absolute, links followed; where they lead nowhere, only absolute: `unreachable` says why."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path.absolute()


def unreachable(path: str | Path) -> str:
    """Why nobody can know whether there is anything at `path`; empty where one can look."""
    try:
        os.stat(path)  # noqa: PTH116  takes texts that are no path, too
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno == errno.ELOOP:
            return f"{str(path)!r} is, or lies behind, a symbolic link that leads back to itself; correct the link"
        return f"{str(path)[:200]!r} cannot be read: {error.strerror}"
    except ValueError as error:
        return f"{str(path)!r} is no path: {error}"
    return ""


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


def end_of(path: Path, most: int) -> str:
    """The last `most` bytes of a file, as text. Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - most))
        return file.read().decode("utf-8", "replace")


def whole_lines(path: Path) -> Iterator[bytes]:
    """With their ends; what is still being written, or was cut off, is left out."""
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def closed_folder(path: Path) -> None:
    """Make the folder, with its parents, or take the one that is there, and close it to other users. Where the file
    system knows no owners, as some on networks do, it stays as it is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(PermissionError):
        path.chmod(0o700)


def own_folder(path: Path) -> None:
    """The same in a place where everybody may write, such as /dev/shm. Raises PenstockError when another user has made
    it before: whatever is put there would be theirs to change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PenstockError(
            f"{path} was made by another user (uid {found.st_uid}, this process is uid {os.geteuid()}) or is no "
            "folder; remove it, or have it removed, and start again"
        )
    path.chmod(0o700)
