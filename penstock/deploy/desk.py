"""The run's desk: an actor on a shared Ray cluster by which other machines find a run, look at it and steer it.

It is a bridge to the run directory and nothing else: it reads files there and puts commands into the run's mailbox, so
that whoever comes over Ray sees and may do exactly what whoever sits beside the directory does. It lives on the
driver's node and ends with the driver.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import ray
import ray.exceptions
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from penstock.deploy.leftovers import Doubled
from penstock.services.control import Command, NoAnswer, Refused
from penstock.services.mailbox import MailboxControl
from penstock.services.rundir import RunDir

NAMESPACE = "penstock"
"""Ray's namespace of all desks; the actors of a run have one of their own, called as the run's id."""
_PREFIX = "run:"
MOST_BYTES = 8 * 2**20
"""Of files in one answer."""
MOST_FILES = 200
"""Of those that match one pattern, the last by name, which of steps are the newest."""

NOTICE = 90.0
"""Seconds in which Ray notices that a driver, or the whole node that it was on, is gone."""
_PAUSE = 0.5
"""Seconds between two tries."""
_ANSWER = 10.0
"""Seconds in which a desk says for whom it speaks."""

Outcome = Literal["done", "refused", "no answer"]


class Card(msgspec.Struct, frozen=True):
    """Who a desk speaks for."""

    run_id: str
    run_dir: str
    """On the driver's node."""
    node: str
    """That node's host name."""
    pid: int
    """The driver."""


class Piece(NamedTuple):
    """News of one file."""

    name: str
    """Relative to the run directory."""
    inode: int
    offset: int
    """Where the bytes belong; 0 replaces what was there."""
    changed: float
    """Unix seconds, by the clock of the desk's node."""
    data: bytes


class News(NamedTuple):
    """What has changed since somebody looked last."""

    pieces: tuple[Piece, ...]
    more: bool
    """There is more than fits into one answer."""
    alive: bool
    """The driver holds the run directory."""
    now: float
    """Unix seconds, by the clock of the desk's node."""
    names: tuple[str, ...]
    """Of all files that match, so far as they are passed on."""


class RunDesk:
    """The actor. Calls run side by side: one that waits for the driver does not keep others from looking."""

    def __init__(self, card: bytes) -> None:
        self._card = card
        self._directory = RunDir(Path(msgspec.json.decode(card, type=Card).run_dir))

    def card(self) -> bytes:
        """Whose desk it is, a `Card` as JSON."""
        return self._card

    def news(self, known: Mapping[str, tuple[int, int]], patterns: Sequence[str]) -> tuple[Any, ...]:
        """News of the files that match `patterns`, as a `News`. `known`: inode and size of what the caller has."""
        there = list(files_of(self._directory.path, patterns))
        names = tuple(str(path.relative_to(self._directory.path)) for path in there)
        pieces, room = [], MOST_BYTES
        for path, name in zip(there, names, strict=True):
            if room <= 0:
                break
            with contextlib.suppress(FileNotFoundError):  # replaced or removed while we look
                piece = _piece(path, name, known.get(name), room)
                if piece is not None:
                    pieces.append(tuple(piece))
                    room -= len(piece.data)
        return (tuple(pieces), room <= 0, self._directory.locked, time.time(), names)

    def send(self, command: bytes, by: str, deadline: float) -> tuple[Outcome, str]:
        """Put a command into the run's mailbox; what became of it, and what the run says."""
        try:
            wish: Command = msgspec.json.decode(command, type=Command)
            return "done", MailboxControl(self._directory).send(wish, by, deadline)
        except (Refused, msgspec.MsgspecError) as error:
            return "refused", str(error)
        except NoAnswer as error:
            return "no answer", str(error)


def files_of(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    """The files below `folder` that match, in the order of the patterns and of names. No pattern leads out of it."""
    for pattern in patterns:
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise ValueError(f"{pattern!r} leads out of the run directory")
        yield from (path for path in sorted(folder.glob(pattern))[-MOST_FILES:] if path.is_file())


def _piece(path: Path, name: str, known: tuple[int, int] | None, room: int) -> Piece | None:
    """What the caller lacks of one file, at most `room` bytes; None when that is nothing. A file is replaced by another
    one or grows at its end; it is never changed in its middle."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        grown = known is not None and known[0] == found.st_ino and known[1] <= found.st_size
        offset = known[1] if grown and known is not None else 0
        if grown and offset == found.st_size:
            return None
        file.seek(offset)
        return Piece(name, found.st_ino, offset, found.st_mtime, file.read(min(room, found.st_size - offset)))


@contextlib.contextmanager
def desk(directory: RunDir, run_id: str) -> Iterator[None]:
    """Inside, the run can be reached by name on the cluster that this process has joined.

    Raises Doubled when another run of the same id can be reached there already, and stays so: the desk of a driver
    that was killed is there until Ray has noticed."""
    card = Card(run_id, str(directory.path), socket.gethostname(), os.getpid())
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {
        "name": _PREFIX + run_id,
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "max_concurrency": 16,
        "max_restarts": -1,
        "scheduling_strategy": here,
    }
    handle = _opened(card, options)
    try:
        yield
    finally:
        ray.kill(handle, no_restart=True)


def _opened(card: Card, options: Mapping[str, Any]) -> Any:
    """The handle of a new desk. Raises Doubled."""
    ends = time.monotonic() + NOTICE
    while True:
        try:
            return ray.remote(RunDesk).options(**options).remote(msgspec.json.encode(card))
        except ValueError as error:  # the name is taken
            if _another(card.run_id, card) or time.monotonic() > ends:
                raise Doubled(card.run_id, "this cluster", Path(card.run_dir)) from error
            time.sleep(_PAUSE)


def _another(run_id: str, own: Card) -> bool:
    """Whether the desk that has the name speaks for another directory. One for the same directory is left over: its
    driver is gone, since this process holds the directory's lock."""
    with contextlib.suppress(ValueError, ray.exceptions.RayError):  # it is about to go, or does not answer any more
        there = ray.get(ray.get_actor(_PREFIX + run_id, namespace=NAMESPACE).card.remote(), timeout=_ANSWER)
        return msgspec.json.decode(there, type=Card).run_dir != own.run_dir
    return False


def desks() -> dict[str, Any]:
    """Run id → handle, of every run on the cluster that this process has joined."""
    named = list_named_actors(all_namespaces=True)
    ours = [entry["name"] for entry in named if entry["namespace"] == NAMESPACE]
    ids = [name.removeprefix(_PREFIX) for name in ours if name.startswith(_PREFIX)]
    found = {}
    for run_id in sorted(ids):
        with contextlib.suppress(ValueError):  # it ended while we looked
            found[run_id] = ray.get_actor(_PREFIX + run_id, namespace=NAMESPACE)
    return found
