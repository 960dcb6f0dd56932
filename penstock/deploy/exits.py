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
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from penstock.services.files import end_of

REAPING = {"kill_child_processes_on_worker_exit_with_raylet_subreaper": True, "process_group_cleanup_enabled": False}
"""Of Ray's configuration: the raylet adopts, ends and reaps whatever a dead worker leaves, and writes how each ended.
Process groups, which do the same since Ray 2.50 and prevail where both are on, write nothing."""
PATIENCE = 0.5
"""Seconds for which a line is waited for: it may come after the news that the process is gone."""
_READ = 2**18
_ENDED = re.compile(
    r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d).*Child process (\d+) exited (with status|from signal) (\d+)", re.MULTILINE
)
_CLOCK = "%Y-%m-%d %H:%M:%S"
"""Of this node, in its own time zone."""
_where: list[Path] = []
_DEFAULT = 0
"""SIG_DFL of the C library."""
_ADOPTS, _DOES_ADOPT = 36, 37
"""PR_SET_CHILD_SUBREAPER and PR_GET_CHILD_SUBREAPER of Linux."""
_ACTION = 1024
"""Bytes in which a `struct sigaction` finds room on every platform."""


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


@contextmanager
def parent_as_before() -> Iterator[None]:
    """Inside Ray may be started or joined; afterwards this process, which may be a user's own program, hears of its
    children as it did before, and adopts whom it adopted. Where it heard of none it does now."""
    system, action, adopts = ctypes.CDLL(None), ctypes.create_string_buffer(_ACTION), ctypes.c_int()
    heard = signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN
    system.sigaction(signal.SIGCHLD, None, action)
    system.prctl(_DOES_ADOPT, ctypes.byref(adopts))
    try:
        yield
    finally:
        be_parent_of_own()
        if heard:
            system.sigaction(signal.SIGCHLD, action, None)
        system.prctl(_ADOPTS, adopts)


def how_it_ended(pid: int, since: float = 0.0, patience: float = PATIENCE) -> tuple[str, int] | None:
    """`exit code` or `signal`, and which, of a process of this node that lived after `since` (unix seconds); None when
    nobody has written it down. Numbers of processes are used again, so what is older is of another one."""
    ends = time.monotonic() + patience
    while True:
        logs = [path for folder in _where for path in sorted(folder.glob("raylet*.out"))]
        found = [line for path in logs for line in _lines_of(path, pid, since)]
        if found:
            kind, number = found[-1]
            return ("exit code" if kind == "with status" else "signal", number)
        if not _where or time.monotonic() > ends:
            return None
        time.sleep(0.05)


def in_words(kind: str, number: int) -> str:
    """What `how_it_ended` has found, as a sentence without its subject."""
    if kind == "exit code":
        return f"ended with exit code {number}"
    name = next((f"{known.name} ({number})" for known in signal.Signals if known == number), f"signal {number}")
    return f"was ended by {name}"


def _lines_of(path: Path, pid: int, since: float) -> list[tuple[str, int]]:
    """What a log says of a process, the newest last; its end is enough. Nothing where it is not ours to read."""
    try:
        text = end_of(path, _READ)
    except OSError:
        return []
    return [
        (kind, int(number))
        for at, found, kind, number in _ENDED.findall(text)
        if int(found) == pid and datetime.strptime(at, _CLOCK).timestamp() >= since - 1  # it has no smaller unit
    ]
