"""How the processes of actors on this node have ended: exit code or signal, as Ray's raylet, their parent, writes it.

Only a parent is told how a process ended, and Ray passes it on to nobody. Its raylet writes it into its own log where
it reaps its children itself, as in the clusters that a run starts (`REAPING`); on another cluster it is read where
whoever started that has set the same.
"""

from __future__ import annotations

import ctypes
import re
import signal
import time
from pathlib import Path

from penstock.services.files import end_of

REAPING = {"kill_child_processes_on_worker_exit_with_raylet_subreaper": True, "process_group_cleanup_enabled": False}
"""Of Ray's configuration: the raylet adopts, ends and reaps whatever a dead worker leaves, and writes how each ended.
Process groups, which do the same since Ray 2.50 and prevail where both are on, write nothing."""
PATIENCE = 0.5
"""Seconds for which a line is waited for: it may come after the news that the process is gone."""
_READ = 2**18
_ENDED = re.compile(r"Child process (\d+) exited (with status|from signal) (\d+)")
_where: list[Path] = []
_DEFAULT = 0
"""SIG_DFL of the C library."""
_ADOPTS = 36
"""PR_SET_CHILD_SUBREAPER of Linux."""


def read_from(logs: Path) -> None:
    """From now on the raylets' logs in this folder are read; of one cluster at a time."""
    _where[:] = [logs]


def be_parent_of_own() -> None:
    """Let this process be told how its own children end, and adopt no others.

    Where the raylet reaps, Ray has every driver and worker ignore SIGCHLD, so that the kernel forgets exit codes, and
    adopt whatever its children leave behind. Whoever hears of children has to reap them; those it did not start nobody
    would, and a dead process that nobody reaps looks alive to others. The raylet adopts an actor's, init a driver's.
    Works in any thread, which Python's own call does not."""
    system = ctypes.CDLL(None)
    system.signal(ctypes.c_int(signal.SIGCHLD), ctypes.c_void_p(_DEFAULT))
    system.prctl(_ADOPTS, 0)


def how_it_ended(pid: int, patience: float = PATIENCE) -> tuple[str, int] | None:
    """`exit code` or `signal`, and which; None when nobody has written it down."""
    ends = time.monotonic() + patience
    while True:
        found = [line for logs in _where for path in sorted(logs.glob("raylet*.out")) for line in _lines_of(path, pid)]
        if found:
            kind, number = found[-1]
            return ("exit code" if kind == "with status" else "signal", number)
        if not _where or time.monotonic() > ends:
            return None
        time.sleep(0.05)


def in_words(pid: int, patience: float = PATIENCE) -> str:
    """How a process ended, as a sentence without its subject; empty when nobody has written it down."""
    ended = how_it_ended(pid, patience)
    if ended is None:
        return ""
    kind, number = ended
    if kind == "exit code":
        return f"ended with exit code {number}"
    name = next((f"{known.name} ({number})" for known in signal.Signals if known == number), f"signal {number}")
    return f"was ended by {name}"


def _lines_of(path: Path, pid: int) -> list[tuple[str, int]]:
    """What a log says of a process, the newest last; its end is enough. Nothing where it is not ours to read."""
    try:
        text = end_of(path, _READ)
    except OSError:
        return []
    return [(kind, int(number)) for found, kind, number in _ENDED.findall(text) if int(found) == pid]
