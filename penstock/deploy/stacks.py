"""Where an actor stands whose process answers and whose loop does not move: an engine's step that never returns, a
collective that waits for a rank."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

PATIENCE = 2.0
"""Seconds for an answer that costs nothing; a process that hangs as a whole gives none."""
_OURS = f"{Path(__file__).parents[1]}/"
"""Where Penstock's files are. Others may lie below a folder that is called penstock, too."""
_LOOPS = ("penstock/deploy/rollouts.py", "penstock/deploy/learners.py")
"""Files of the actors whose `run` is their loop."""


def where_they_stand(actors: Mapping[str, Any], patience: float = PATIENCE) -> dict[str, str]:
    """By name the line at which the loop of each actor stands, for people; without those whose process does not answer.
    The stacks of all threads go into the actors' logs. All are asked at once."""
    asked = {actor.__ray_call__.remote(_told): name for name, actor in actors.items()}
    there = ray.wait(list(asked), num_returns=len(asked), timeout=patience)[0] if asked else []
    return {asked[answer]: said for answer in there if (said := _heard(answer))}


def _heard(answer: Any) -> str:
    try:
        return str(ray.get(answer))
    except ray.exceptions.RayTaskError:
        return "it cannot say where it stands"
    except ray.exceptions.RayError:
        return ""


def _told(_: Any) -> str:
    """In the actor's process."""
    asked, names = threading.get_ident(), {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = {ident: traceback.extract_stack(frame) for ident, frame in sys._current_frames().items() if ident != asked}
    for ident, stack in stacks.items():
        lines = "".join(traceback.format_list(stack))
        print(f"--- thread {names.get(ident, ident)} stands at\n{lines}", flush=True)  # noqa: T201 - this is its log
    loops = [stack for stack in stacks.values() if any(_begins_a_loop(entry) for entry in stack)]
    return "; ".join(in_words(stack) for stack in loops) or "its loop is in no thread"


def in_words(stack: traceback.StackSummary) -> str:
    """The innermost line of Penstock, and the one it waits in where that is another library's."""
    ours = next((entry for entry in reversed(stack) if entry.filename.startswith(_OURS)), stack[-1])
    said = f"it stands in {ours.name}, {_place(ours)}"
    return said if ours is stack[-1] else f"{said}, within {stack[-1].name}, {_place(stack[-1])}"


def _begins_a_loop(entry: traceback.FrameSummary) -> bool:
    return entry.name == "run" and entry.filename.endswith(_LOOPS)


def _place(entry: traceback.FrameSummary) -> str:
    """`folder/file.py:line`, enough of the path to find it."""
    ours = entry.filename.startswith(_OURS)
    path = f"penstock/{entry.filename.removeprefix(_OURS)}" if ours else "/".join(Path(entry.filename).parts[-3:])
    return f"{path}:{entry.lineno}"
