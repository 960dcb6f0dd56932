"""A run that goes on somewhere on a Ray cluster, as this machine sees it: a copy of its directory, and its control.

Whatever reads a run directory reads the copy as it reads the run's own: the files are the same, and the copy is locked
for as long as the driver holds the original.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import ray
import ray.exceptions

from penstock.deploy.desk import Card, News, Piece
from penstock.services.control import Command, NoAnswer, Refused
from penstock.services.rundir import RunDir

_ANSWER = 20.0
"""Seconds in which a desk must answer; its process may still be starting."""
_MARGIN = 10.0
"""Seconds that a command's way there and back may take, besides its own deadline."""


def card_of(desk: Any) -> Card:
    """Who the desk speaks for. Raises NoAnswer when its run has ended, or it does not answer in time."""
    try:
        return msgspec.json.decode(ray.get(desk.card.remote(), timeout=_ANSWER), type=Card)
    except ray.exceptions.RayError as error:
        raise NoAnswer(f"the run has ended, or its desk does not answer within {_ANSWER:g} s") from error


class Mirror:
    """A copy of a run directory that is brought up to date when it is asked to."""

    def __init__(self, desk: Any, card: Card, folder: Path) -> None:
        """Makes the copy, empty but for its lock, in `folder`."""
        self._desk, self.card = desk, card
        self.directory = RunDir(folder)
        self._known: dict[str, tuple[int, int]] = {}
        self.directory.lock()

    def refresh(self, patterns: Sequence[str]) -> None:
        """Fetch what has changed of the files that match. Where the driver is gone, the copy stays as it is and is no
        longer locked. Raises NoAnswer when the cluster does not answer in time."""
        more, ends = True, time.monotonic() + _ANSWER
        while more:
            try:
                answer = ray.get(self._desk.news.remote(self._known, list(patterns)), timeout=_ANSWER)
            except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError) as error:
                if time.monotonic() < ends:
                    time.sleep(0.5)  # Ray is starting the desk again
                    continue
                late = f"waited {_ANSWER:g} s for the desk of {self.card.run_id} on {self.card.node}"
                raise NoAnswer(late) from error
            except ray.exceptions.RayError:
                self.directory.unlock()
                return
            news, ends = News(*answer), time.monotonic() + _ANSWER
            for piece in news.pieces:
                self._put(Piece(*piece), time.time() - news.now)
            self._forget(set(self._known) - set(news.names))
            more = news.more
            if not news.alive:
                self.directory.unlock()

    def _put(self, piece: Piece, ahead: float) -> None:
        """Write down one piece. `ahead`: seconds by which the clock here is ahead of the one there."""
        path = self.directory.path / piece.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if piece.offset:
            with path.open("r+b") as file:
                file.seek(piece.offset)
                file.write(piece.data)
        else:
            fresh = path.with_name(f".{path.name}.new")
            fresh.write_bytes(piece.data)
            fresh.replace(path)
        os.utime(path, times=(time.time(), piece.changed + ahead))
        self._known[piece.name] = (piece.inode, piece.offset + len(piece.data))

    def _forget(self, names: set[str]) -> None:
        """Files that are gone there, or that newer ones have taken the place of."""
        for name in names:
            del self._known[name]
            (self.directory.path / name).unlink(missing_ok=True)

    def close(self) -> None:
        self.directory.unlock()


class DeskControl:
    """`control.RunControl` over Ray: the desk puts the command into the run's own mailbox."""

    def __init__(self, desk: Any, card: Card) -> None:
        self._desk, self._card = desk, card

    def send(self, command: Command, by: str, deadline: float = 30.0) -> str:
        """See `RunControl.send`."""
        call = self._desk.send.remote(msgspec.json.encode(command), by, deadline)
        where = f"{self._card.run_id} on {self._card.node}"
        try:
            outcome, text = ray.get(call, timeout=deadline + _MARGIN)
        except ray.exceptions.GetTimeoutError as error:
            raise NoAnswer(f"waited {deadline + _MARGIN:g} s for the desk of {where}; the cluster is stuck") from error
        except ray.exceptions.RayError as error:
            raise NoAnswer(f"{where} ended before it answered: its driver is gone") from error
        if outcome == "done":
            return str(text)
        raise (Refused if outcome == "refused" else NoAnswer)(text)
