"""Ctrl-C and SIGTERM: the first asks for a clean end, the second ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether a person, or the system, has asked the run to end."""

    def __init__(self) -> None:
        self.name = ""
        """Name of the signal; empty while none has come."""

    def __bool__(self) -> bool:
        return bool(self.name)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Inside, the first SIGINT or SIGTERM is only noted; a second one raises KeyboardInterrupt.

    Elsewhere than in the main thread Python delivers no signals, and nothing is changed.
    """
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.name = signal.Signals(number).name

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
