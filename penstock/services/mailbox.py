"""Commands to a running run, as files in its directory.

The one who asks writes `control/<time>-<id>.json`, whole at once. The driver looks there several times a second, takes
the commands in their order by renaming them to `.taken`, carries them out and writes `.answer` beside. Who has waited
long enough takes the command back by deleting it, which succeeds only before it was taken.

Files, because they need no port, no password and no store that may be down at the very moment when someone wants to
pause. Who may write into the run directory may steer the run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec

from penstock.services.control import Answer, Asked, Command, NoAnswer, Refused
from penstock.services.files import write_atomically
from penstock.services.rundir import RunDir

_LOOK = 0.05
"""Seconds between looks for an answer."""
_KEEP = 600.0
"""Seconds for which an answer that nobody has read is kept."""
LONGEST = 64 * 1024
"""Bytes of a command; a larger file is no command."""

_DECODER = msgspec.json.Decoder(Asked)
_ANSWER = msgspec.json.Decoder(Answer)


class Mailbox:
    """The driver's end."""

    def __init__(self, directory: RunDir) -> None:
        self._folder = directory.control
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def refuse_left(self, why: str) -> int:
        """Answer whatever was asked of an earlier start of the run, or after its end; returns how many that were."""
        return self.serve(lambda _: Answer(False, why))

    def serve(self, execute: Callable[[Asked], Answer]) -> int:
        """Carry out what has been asked, in the order in which it was; returns how much that was.

        Never raises for a file that is no command: its sender is told.
        """
        served = 0
        for path in sorted(self._folder.glob("*.json")):
            taken = path.with_suffix(".taken")
            try:
                path.rename(taken)
            except FileNotFoundError:
                continue  # its sender has taken it back
            write_atomically(path.with_suffix(".answer"), msgspec.json.encode(_answer(taken, execute)), sync=False)
            _remove(taken)
            served += 1
        if served:
            self._forget_unread()
        return served

    def _forget_unread(self) -> None:
        for path in self._folder.glob("*.answer"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _KEEP:
                    path.unlink()


def _answer(path: Path, execute: Callable[[Asked], Answer]) -> Answer:
    """What the command in the file leads to."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            return Answer(False, "not a command: no plain file")
        if found.st_size > LONGEST:
            return Answer(False, f"not a command: {found.st_size} bytes, a command has at most {LONGEST}")
        asked = _DECODER.decode(path.read_bytes())
    except OSError as error:
        return Answer(False, f"not a command that can be read: {error.strerror}")
    except ValueError as error:  # msgspec's own, and that of bytes that are no text
        return Answer(False, f"not a command of this version of Penstock: {error}")
    return execute(asked)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


class MailboxControl:
    """`control.RunControl` for whoever can write into the run directory."""

    def __init__(self, directory: RunDir) -> None:
        self._directory = directory

    def send(self, command: Command, by: str, deadline: float = 30.0) -> str:
        """See `RunControl.send`. A command that was not taken up in time is taken back and never carried out."""
        directory = self._directory
        if not directory.locked:
            raise NoAnswer(f"{directory.path} is not running: no driver holds it. `penstock status` says how it ended")
        now = time.time()
        asked = Asked(f"{int(now * 1e9):020d}-{uuid.uuid4().hex}", by, now, command)
        request = directory.control / f"{asked.id}.json"
        directory.control.mkdir(mode=0o700, exist_ok=True)
        write_atomically(request, msgspec.json.encode(asked), sync=False)
        answer = self._wait(request, request.with_suffix(".answer"), deadline)
        if not answer.done:
            raise Refused(answer.text)
        return answer.text

    def _wait(self, request: Path, answer: Path, deadline: float) -> Answer:
        """The answer, read and gone. Raises NoAnswer."""
        ends = time.monotonic() + deadline
        while not answer.exists():
            if time.monotonic() > ends or not self._directory.locked:
                with contextlib.suppress(FileNotFoundError):
                    request.unlink()
                if not answer.exists():  # the last moment may have brought it
                    raise NoAnswer(_unanswered(self._directory, deadline, request.with_suffix(".taken").exists()))
            time.sleep(_LOOK)
        found = _ANSWER.decode(answer.read_bytes())
        answer.unlink()
        return found


def _unanswered(directory: RunDir, deadline: float, taken: bool) -> str:
    if not directory.locked:
        return f"{directory.path} ended before it answered; `penstock status {directory.path}` says how"
    state = "began to carry the command out and has not said how it went" if taken else "did not look at it"
    return (
        f"waited {deadline:g} s for the driver of {directory.path}, which {state}. `penstock status` says what it is "
        "doing, logs/ what it said last"
    )


def whoami() -> str:
    """Who asks, for the run's events."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
