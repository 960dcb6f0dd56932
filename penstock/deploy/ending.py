"""How a run ended and why, whatever ended it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
def ending(conclude: Callable[[Ending], None], asked: Interruption) -> Iterator[Ending]:
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
    except Exception as error:
        end.why = str(error) if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        conclude(end)
