"""A file that one process at a time holds, which others can see."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FileLock:
    """Held until `release` or the end of the process, however it ends. The file says who holds it."""

    def __init__(self, path: Path) -> None:
        """Touches nothing."""
        self._path = path
        self._handle: int | None = None

    def claim(self) -> str | None:
        """None when it is ours now; else the process id of whoever has it, or `unknown`."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            return owner
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._handle = handle
        return None

    def release(self) -> None:
        """Does nothing where it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @property
    def held(self) -> bool:
        """By this process or another one on this machine."""
        if self._handle is not None:
            return True
        if not self._path.exists():
            return False
        with self._path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False
