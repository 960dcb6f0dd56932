"""Reads a growing file of lines from where it stopped the last time."""

from __future__ import annotations

import os
from pathlib import Path

CHUNK = 4 * 1024 * 1024
"""Bytes of one `read`, so that whoever shares the processor gets a turn."""


class Tail:
    """The whole lines that were added to a file since the last call.

    A line without its end is left for later. A file that was replaced, or that became shorter, is read from its start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._file = (0, 0)
        self.size = 0
        """Bytes of the file when it was looked at last."""

    @property
    def behind(self) -> int:
        """Bytes that were there at the last look and are not read yet; an unfinished line counts."""
        return max(0, self.size - self._at)

    def read(self, most: int = CHUNK) -> list[bytes]:
        """New whole lines with their ends, `most` bytes of them and the rest of the last line."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                self.size = found.st_size
                if (found.st_dev, found.st_ino) != self._file or found.st_size < self._at:
                    self._file, self._at = (found.st_dev, found.st_ino), 0
                if found.st_size <= self._at:
                    return []
                file.seek(self._at)
                text = file.read(most)
                if not text.endswith(b"\n"):
                    text += file.readline()
        except FileNotFoundError:
            self.size = 0
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        return whole.splitlines(keepends=True)
