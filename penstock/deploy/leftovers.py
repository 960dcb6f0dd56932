"""What runs leave behind that were killed, cleared away by the next start.

Every process of a run inherits `MARK` with the run's id. Ray's folder holds the process that made it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from penstock.services.contracts import PenstockError, WrongInput
from penstock.services.files import own_folder

MARK = "PENSTOCK_RUN_ID"
"""Environment variable of all processes of a run."""
OWNER = "owner"
"""File in a Ray folder: process id and start time of the driver, and the namespace of process ids they are from."""

_SHARED = "penstock-"
"""Begins the names of folders in shared memory."""


class Doubled(WrongInput):
    """Another run of the same id is going on: one of the two directories is a copy of the other."""

    def __init__(self, run_id: str, where: str, directory: Path) -> None:
        super().__init__(
            f"a run with the id {run_id} is going on on {where} already. Is {directory} a copy of its directory, or is "
            "that one? Remove the file .run-id in the copy, and start it again"
        )


@contextlib.contextmanager
def only_one(run_id: str, directory: Path) -> Iterator[None]:
    """Inside, this process is the only driver of the run `run_id` on this machine. Raises Doubled, and PenstockError
    where there is no folder for the lock."""
    # A home may be shared by machines. The end of an id is what is its own, and names of files may not be long.
    path = private_folder() / f"{run_id[-40:]}@{socket.gethostname()}.lock"
    handle = _locked(path)
    if handle is None:
        raise Doubled(run_id, "this machine", directory)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _locked(path: Path) -> int | None:
    """The file, open and locked; None where somebody else has locked it. Whoever had it removes it at his end, so the
    one that was opened may be gone by the time it is free."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.lstat()):
                return handle
        os.close(handle)


def private_folder() -> Path:
    """A folder on this machine, the same for all of this user's runs, that nobody else can prepare or write into: in
    the user's cache, or in the temporary folder where there is none. Raises PenstockError where neither is ours."""
    doubts = []
    for folder in _candidates():
        try:
            own_folder(folder)
        except (OSError, PenstockError) as error:
            doubts.append(str(error))
        else:
            return folder
    raise PenstockError(
        f"there is no private folder for a run's lock: {'; '.join(doubts)}. Set HOME, or TMPDIR, to a folder that is "
        "yours to write in"
    )


def _candidates() -> Iterator[Path]:
    """Where a private folder may be. In the temporary folder everybody may make one of this name: it is used only if it
    is ours."""
    with contextlib.suppress(RuntimeError):  # a user without a home, as in some containers
        yield Path.home() / ".cache" / "penstock" / "runs"
    yield Path(tempfile.gettempdir()) / f"penstock-{os.geteuid()}"


def marked(run_id: str) -> list[psutil.Process]:
    """Living processes of the run `run_id`, this one and its ancestors left out."""
    mark = f"{MARK}={run_id}".encode()
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):  # it ended while we looked, or belongs to somebody else
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            if process.pid not in mine and mark in environment:
                found.append(process)
    return found


def end_marked(run_id: str) -> int:
    """Kill what an earlier driver of this run left running; returns how many. Only for the one who holds the run
    directory's lock: then no living driver owns them."""
    found = marked(run_id)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=10)
    return len(found)


def claim(folder: Path) -> None:
    """Make a run's folder in shared memory, where everybody may make some, and remove what killed drivers have
    left there, which takes memory until somebody does. Raises PenstockError where the folder is somebody else's."""
    remove_orphans(folder.parent, _SHARED)
    own_folder(folder)
    own(folder)


def own(folder: Path) -> None:
    """Leave word that this process made `folder`."""
    (folder / OWNER).write_text(f"{os.getpid()} {psutil.Process().create_time()} {_namespace()}")


def remove_orphans(parent: Path, prefix: str) -> None:
    """Remove folders whose maker is dead. Of those of another container that shares `parent` nothing can be known."""
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError, ValueError):
            pid, started, namespace = (folder / OWNER).read_text().split()
            if namespace == _namespace() and not _lives(int(pid), float(started)):
                shutil.rmtree(folder, ignore_errors=True)


def _namespace() -> str:
    """Process ids mean the same in processes of the same namespace."""
    return str(Path("/proc/self/ns/pid").readlink())


def _lives(pid: int, started: float) -> bool:
    with contextlib.suppress(psutil.Error):
        return abs(psutil.Process(pid).create_time() - started) < 1.0
    return False
