"""How a run ended and why, whatever ended it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray.exceptions

from penstock.deploy.signals import Interruption
from penstock.deploy.view import Phase
from penstock.services.contracts import PenstockError


@dataclass
class Ending:
    """Filled in by whoever knows: the run itself when it comes to its end, an error otherwise."""

    outcome: Phase = "failed"
    why: str = ""


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
