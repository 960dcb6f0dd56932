"""One thread of another process stands still, as in a call that never returns, while the others go on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_EVERY_THREAD = 0x40000000
"""__WALL, without which wait(2) does not hear of other processes' threads."""


def busiest(pid: int, seconds: float = 2.0) -> int:
    """The thread of a process that computes most, which is its engine's."""

    def ticks() -> dict[int, int]:
        spent = {}
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # ended meanwhile
                user, system = (task / "stat").read_text().rpartition(")")[2].split()[11:13]
                spent[int(task.name)] = int(user) + int(system)
        return spent

    before = ticks()
    time.sleep(seconds)
    return max((spent - before.get(thread, 0), thread) for thread, spent in ticks().items())[1]


def freeze(pid: int, thread: int, seconds: float | None = None) -> None:
    """Stop one thread of a process, at a moment when it sleeps: one that computes may hold the interpreter's lock, and
    then all stand still. Returns once it stands, which it does for so many `seconds`, or until the process is ended.

    Linux traces single threads; whoever traces one has to hear of its end, or the process is never quite gone. Raises
    OSError where tracing is not allowed."""
    failed: list[int] = []
    stands = threading.Event()

    def trace() -> None:
        system = ctypes.CDLL(None, use_errno=True)
        system.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        state, ends = Path(f"/proc/{pid}/task/{thread}/stat"), time.monotonic() + 8
        while state.read_text().rpartition(")")[2].split()[0] != "S" and time.monotonic() < ends:
            time.sleep(0)  # once it sleeps there is no time to lose
        for request in (_SEIZE, _INTERRUPT):
            if system.ptrace(request, thread, None, None) < 0:
                failed.append(ctypes.get_errno())
                break
        else:
            os.waitpid(thread, _EVERY_THREAD)
        stands.set()
        if seconds is not None and not failed:
            time.sleep(seconds)
            system.ptrace(_DETACH, thread, None, None)
            return
        with contextlib.suppress(ChildProcessError):  # it is gone
            while not failed and not os.WIFSIGNALED(os.waitpid(thread, _EVERY_THREAD)[1]):
                pass

    threading.Thread(target=trace, name="tracer", daemon=True).start()
    assert stands.wait(10), f"waited 10 s for thread {thread} to stand still"
    if failed:
        raise OSError(failed[0], f"ptrace of thread {thread}: {os.strerror(failed[0])}")
