"""Why did an actor die? Its own log, how its process ended, and whether the kernel was out of memory.

Ray says that a process is gone, not why. What can be found out afterwards is gathered here into the one error that the
user sees.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import ray.exceptions

from penstock.deploy import exits
from penstock.services.contracts import PenstockError
from penstock.services.files import end_of

LAST_LINES = 12
_READ = 65536
BIRTH = "--- process"
"""Begins the first line of every process's part of a log."""
_LOUD = re.compile(r"\*\*\* (SIG[A-Z]+) received|Fatal Python error: (.+)")


def begin_life(log: Path) -> None:
    """What every actor does first: send this process's output, that of its libraries included, to `log`, name the
    process in its first line, and be a parent of nobody but its own children.

    Raises PenstockError on a node that does not see the run directory, where nothing else would be found either."""
    if not log.parent.is_dir():
        raise PenstockError(
            f"the node {socket.gethostname()} does not see the run directory {log.parent.parent}: all nodes that hold "
            "actors of a run must share the file system of its runs_dir"
        )
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    exits.be_parent_of_own()
    print(f"{BIRTH} {os.getpid()} on {socket.gethostname()}", flush=True)  # noqa: T201 - this is the log


def last_lines(log: Path, count: int = LAST_LINES) -> list[str]:
    """The end of what the last process wrote into a log, at most 64 KiB of it read."""
    return _last_life(log, count)[1]


def _last_life(log: Path, count: int = LAST_LINES) -> tuple[tuple[int | None, str | None], list[str]]:
    """Process id and node, where they are near enough to be read, and last lines of the last process that wrote into a
    log: an actor that was started again goes on in the same file."""
    if not log.exists():
        return (None, None), []
    _, born, life = end_of(log, _READ).rpartition(BIRTH)
    birth, _, rest = life.partition("\n") if born else ("", "", life)
    lines = [line for line in rest.splitlines() if line.strip()][-count:]
    pid, _, node = birth.strip().partition(" on ")
    return (int(pid) if pid.isdigit() else None, node or None), lines


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


@dataclass(frozen=True)
class Life:
    """Of an actor's process: what has to be known to find out how it ended."""

    since: float = 0.0
    """Unix seconds at which its start was asked for."""
    oom: int = 0
    """How many processes this node's kernel had killed for want of memory by then."""
    pid: int | None = None
    node: str | None = None
    """None, as the process id, where it has not said so; its log may."""

    @classmethod
    def begins(cls) -> Life:
        """Now."""
        return cls(time.time(), out_of_memory_kills())


def tail_of(log: Path) -> str:
    """The last lines of a log, as the end of an error."""
    return _tail(log, _last_life(log)[1])


def _tail(log: Path, lines: list[str]) -> str:
    shown = "".join(f"\n    {line}" for line in lines) or "\n    (the log is empty)"
    return f"\n  last lines of {log}:{shown}"


def explain(name: str, error: Exception, log: Path, life: Life) -> str:
    """One paragraph on why the actor `name` is gone, with the last lines of its log, which also says what `life` does
    not know."""
    birth, lines = _last_life(log)
    if life.pid is None:
        life = replace(life, pid=birth[0], node=birth[1])
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = f"{type(error.cause).__name__}: {error.cause}" if error.cause else str(error).strip().splitlines()[-1]
    elif isinstance(error, ray.exceptions.ActorDiedError | ray.exceptions.ActorUnavailableError):
        cause = _silent_cause(error, lines, life)
    else:
        cause = f"{type(error).__name__}: {error}"
    return f"{name} died: {cause}{_tail(log, lines)}"


def _silent_cause(error: ray.exceptions.RayActorError, lines: list[str], life: Life) -> str:
    """The cause when the process is gone without a Python exception."""
    for line in reversed(lines):
        if found := _LOUD.search(line):
            return f"the process was ended by {found[1] or found[2]}"
    here = life.node in (None, socket.gethostname())
    ended = exits.how_it_ended(life.pid, life.since) if here and life.pid is not None else None
    if here and ended in (None, ("signal", signal.SIGKILL)) and out_of_memory_kills() > life.oom:
        return "the kernel killed it, or a process beside it, for want of memory (SIGKILL)"
    text = str(error)
    if "__init__" in text or "creation task" in text:
        return text.strip().splitlines()[-1]
    if "ray.kill" in text:
        return "it was ended by its supervisor"
    if ended is not None:
        return f"its process {life.pid} {exits.in_words(*ended)}, without a word"
    return "the process is gone without a word, as after SIGKILL (kill -9)"
