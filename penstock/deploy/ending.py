"""How a run ended and why, whatever ended it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray.exceptions

from penstock.deploy.signals import Interruption, interruptible
from penstock.deploy.view import Phase
from penstock.services.contracts import PenstockError
from penstock.services.rundir import RunDir


@dataclass
class Ending:
    """Filled in by whoever knows: the run itself when it comes to its end, an error otherwise."""

    outcome: Phase = "failed"
    why: str = ""


@dataclass
class Tenure:
    """One process's time with a run directory."""

    asked: Interruption
    """What a signal asks for meanwhile."""
    outcome: Phase = "failed"
    """How the run ended, for whoever was inside to fill in."""


@contextmanager
def tenure(directory: RunDir) -> Iterator[Tenure]:
    """Inside, the run directory is this process's alone and signals are heeded, not obeyed at once. Afterwards raises
    KeyboardInterrupt when the run came to a clean end because one had asked for it."""
    directory.lock()
    try:
        with interruptible() as asked:
            held = Tenure(asked)
            yield held
        if held.outcome == "stopped":
            raise KeyboardInterrupt
    finally:
        directory.unlock()


@contextmanager
def ending(conclude: Callable[[Ending], None], asked: Interruption, run_dir: Path) -> Iterator[Ending]:
    """Inside, a run goes on; `conclude` is called once with how it ended, before an error goes on to the caller.

    Errors of Ray's calls become PenstockError, so that a person sees one message and no traceback."""
    end = Ending()
    try:
        yield end
    except KeyboardInterrupt:
        end.outcome, end.why = "stopped", f"interrupted by {asked.name or 'SIGINT'}"
        raise
    except ray.exceptions.RayError as error:
        end.why = f"a call to an actor failed: {type(error).__name__}: {error}"
        raise PenstockError(end.why) from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            end.why = f"{type(error).__name__}: {error}"
            raise
        end.why = f"{error.filename or f'a file in {run_dir}'} could not be written: {error.strerror}; make room"
        raise PenstockError(f"{end.why}, and then go on with: penstock resume {run_dir}") from error
    except Exception as error:
        end.why = str(error) if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        _conclude(conclude, end, run_dir)


def _conclude(conclude: Callable[[Ending], None], end: Ending, run_dir: Path) -> None:
    """How the run ended is said, also where it cannot be written down."""
    try:
        conclude(end)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        unwritten = f"{end.why}. This could not be written down: {error.strerror}"
        raise PenstockError(f"{unwritten}. When there is room, go on with: penstock resume {run_dir}") from error


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""A disk that is full, or full for this user, or cannot be written at all."""
