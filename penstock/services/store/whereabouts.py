"""Where the private server of a run folder is: the word it leaves for people and for the next run.

The run's store folder holds a link `live` to the server's short folder; there lies `server.json`. The password is not
in it, nor in any other file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import psutil

from penstock.services.contracts import StoreError

_PREFIX = "penstock-"
_LONGEST_PATH = 100
"""Bytes of a socket's path; the kernel allows 107."""


def describe(data: Path, folder: Path, pid: int, url: str) -> None:
    """Leave word of the server `pid` that serves `data` from `folder`, started by this process."""
    me = psutil.Process()
    facts = {
        "pid": pid,
        "started": _started(pid),
        "driver": me.pid,
        "driver_started": me.create_time(),
        "url": url,
    }
    path = folder / "server.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(facts))
    link = data / "live"
    link.unlink(missing_ok=True)
    link.symlink_to(folder)


def end_predecessor(data: Path, deadline: float) -> None:
    """End a server that a dead run left on this folder, and remove what it left.

    Raises StoreError when the run that started it still lives."""
    facts = _facts(data)
    link = data / "live"
    if facts is None:
        link.unlink(missing_ok=True)
        return
    if _runs(facts["pid"], facts["started"]) and _is_redis(facts["pid"]):
        if _runs(facts["driver"], facts["driver_started"]):
            raise StoreError(
                f"the store in {data} is in use by process {facts['driver']}: stop that run first, or choose another "
                "run directory"
            )
        orphan = psutil.Process(facts["pid"])
        orphan.kill()  # deaf to SIGTERM; what it has acknowledged is in its file
        orphan.wait(deadline)
    left = link.resolve()
    if left.name.startswith(_PREFIX):
        remove(data, left)
    else:  # none that a server has made
        link.unlink()


def _facts(data: Path) -> dict[str, Any] | None:
    try:
        return json.loads((data / "live" / "server.json").read_text())  # type: ignore[no-any-return]
    except (FileNotFoundError, json.JSONDecodeError):  # no server, or one that ended while it wrote this
        return None


def _is_redis(pid: int) -> bool:
    """The file may be of a run directory that somebody else has made, and what it names is killed."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).name().startswith("redis-server")
    return False


def _started(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:  # ended at once; whoever waits for it will say why
        return 0.0


def _runs(pid: int, started: float) -> bool:
    """Whether that very process is alive; process ids are used again."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def short_folder() -> Path:
    """A new folder of mode 0700 in which a socket's path is short enough."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if base and len(os.fsencode(base)) + len("/penstock-XXXXXXXX/redis.sock") <= _LONGEST_PATH:
            try:
                return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            except OSError:  # not there or not ours to write in
                continue
    raise StoreError("no short folder for the store's socket: XDG_RUNTIME_DIR, TMPDIR and /tmp cannot be written")


def remove(data: Path, folder: Path) -> None:
    """Take away the link in `data` and the folder it leads to."""
    (data / "live").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
