"""What every node of a cluster must see of a run, and whether it does.

Actors write logs, checkpoints and weights into the run directory and read models and data by their paths; Ray moves
none of it. So a run on several nodes needs a file system that they share, and the store's port open between them.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from penstock.deploy.keys import dotted
from penstock.deploy.runfile import RunFile
from penstock.services.contracts import WrongInput
from penstock.services.rundir import RunDir

_VISIBLE = 5.0
"""Seconds in which a new folder must have become visible; network file systems remember what was not there."""
_READ = ("model", "data", "evaluation", "reward", "algorithm")
"""Sections of the run file whose paths are inputs of actors."""


class NotShared(WrongInput):
    """A node on which an actor of the run would find nothing to work with."""


@dataclass(frozen=True)
class Ground:
    """What a node must see."""

    run_dir: Path
    run_id: str
    folders: tuple[Path, ...] = ()
    """Besides, where something is written."""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """Key of the run file → what is read from there."""
    store: str = ""
    """URL of the store."""


def inputs_of(run_file: RunFile) -> dict[str, Path]:
    """Everything on this machine's disks that the run file names, by its key."""
    own_rules = run_file.reward is not None and any(":" in (r.rule or n) for n, r in run_file.reward.rules.items())
    own_row = ":" in run_file.algorithm.name
    unused = {*(() if own_rules else ("reward.folder",)), *(() if own_row else ("algorithm.folder",))}
    values = run_file.model_dump(mode="json", include=set(_READ))
    found = {dotted(path): Path(text) for path, text in _texts(values, ())}
    return {key: path for key, path in found.items() if key not in unused and path.is_absolute() and path.exists()}


def _texts(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, (dict, list)):
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(below, (*path, key))


# --- on the node ----------------------------------------------------------------------------------


def lacking(ground: Ground, patience: float = _VISIBLE) -> list[str]:
    """What this machine does not see, each in a few words; waits a little for what may be on its way."""
    ends = time.monotonic() + patience
    while (found := list(_lacking(ground))) and time.monotonic() < ends:
        time.sleep(0.2)
    return found


def _lacking(ground: Ground) -> Iterator[str]:
    mark = ground.run_dir / ".run-id"
    if not mark.is_file() or mark.read_text() != ground.run_id:
        yield f"the run directory {ground.run_dir} is not there"
    for folder in ground.folders:
        if not os.access(folder, os.W_OK):
            yield f"the folder {folder} is not there, or cannot be written to"
    for key, path in ground.inputs.items():
        if not path.exists():
            yield f"{key}: {path} is not there"
    yield from _unreachable(ground.store)


def _unreachable(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or parts.hostname is None:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or 6379), timeout=_VISIBLE).close()
    except OSError as error:
        yield f"the store at {parts.hostname}:{parts.port} does not answer ({error.strerror or error})"


# --- from the driver ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """One node, and its answer on the way."""

    name: str
    answer: Any


def look_around(ground: Ground) -> list[Look]:
    """Have every node that actors may come to look; returns at once."""
    look = ray.remote(num_cpus=0, max_retries=0)(lacking)
    return [
        Look(
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(ground),
        )
        for node in ray.nodes()
        if node["Alive"] and any(node["Resources"].get(kind) for kind in ("CPU", "GPU"))
    ]


def require_common_ground(looks: Sequence[Look], directory: RunDir, deadline: float) -> None:
    """`deadline` is the seconds in which every node must have looked; it may have to unpack the job's working directory
    first. Raises NotShared that lists what which node does not see, and says what helps."""
    ends = time.monotonic() + deadline
    troubles = [(look.name, text) for look in looks for text in _answer(look, ends, deadline)]
    if not troubles:
        return
    listed = "\n".join(f"  {name}: {text}" for name, text in troubles)
    raise NotShared(
        f"the actors of this run may live on {len(looks)} nodes of the cluster, which do not all see what they need:\n"
        f"{listed}\n"
        f"Logs, checkpoints and weights go into the run directory: give a runs_dir (now {directory.path.parent}) on a "
        "file system that all nodes share. Models and data must lie there too, or in the working directory of `ray job "
        "submit`, or come from the hub. Nodes reach the store over TCP; store.url names one that stands elsewhere. To "
        "stay on one machine, start the run there without a Ray address"
    )


def _answer(look: Look, ends: float, deadline: float) -> list[str]:
    try:
        found: list[str] = ray.get(look.answer, timeout=max(0.0, ends - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        return [f"has not answered for {deadline:g} s (deadlines.answer)"]
    except ray.exceptions.RayError as error:
        why = str(error.cause) if isinstance(error, ray.exceptions.RayTaskError) and error.cause else str(error)
        return [f"cannot run Penstock: {why.strip().splitlines()[-1]}. Install the same version there"]
    return found
