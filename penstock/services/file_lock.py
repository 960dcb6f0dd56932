"""A file that one process at a time holds, which others can see."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

_TRIES, _INSTANT = 5, 0.02
"""How often a lock is tried for that somebody has, and seconds between."""


class FileLock:
    """Held until `release` or the end of the process, however it ends. The file says who holds it."""

    def __init__(self, path: Path) -> None:
        """Touches nothing."""
        self._path = path
        self._handle: int | None = None

    def claim(self) -> str | None:
        """None when it is ours now; else the process id of whoever has it, or `unknown`."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not _taken(handle):
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


def _taken(handle: int) -> bool:
    """Lock the file for this process alone. Whoever asks whether it is `held` has it for an instant: that is waited
    out."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_INSTANT)
        else:
            return True
    return False
