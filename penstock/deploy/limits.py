"""Limits that the driver keeps: those by the clock and by the disk. Steps and tokens are counted by the learner."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from penstock.deploy.config import LimitsSection

_DISK = 30.0
"""Seconds between measurements of the run directory."""


class Limits:
    """Asked at every look of the driver."""

    def __init__(self, section: LimitsSection, folder: Path) -> None:
        """`folder` is the run directory."""
        self._section, self._folder = section, folder
        self._measured = 0.0

    def reached(self, began_at: float | None) -> str:
        """Which of them has been reached; empty while none has. `began_at`: unix seconds at which training began, None
        before."""
        minutes, most = self._section.minutes, self._section.disk_gib
        if minutes is not None and began_at is not None and time.time() - began_at > minutes * 60:
            return f"limits.minutes: {minutes:g} minutes have passed"
        if most is not None and time.monotonic() - self._measured > _DISK:
            self._measured = time.monotonic()
            used = _bytes_in(self._folder) / 2**30
            if used > most:
                return f"limits.disk_gib: the run directory holds {used:.2f} GiB, {most:g} are allowed"
        return ""


def _bytes_in(folder: Path) -> int:
    """Size of all files; those that vanish meanwhile count as nothing."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(path) / name).stat().st_size
    return total
