"""The run's store: a private server that is started, watched and ended with the run, or a server somewhere else."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from penstock.services.contracts import StoreError
from penstock.services.rundir import RunDir, RunDirError
from penstock.services.store.config import StoreSection
from penstock.services.store.connection import Away, StoreAddress
from penstock.services.store.server import PrivateServer

if TYPE_CHECKING:
    from penstock.services.store.ledger import RedisStore

T = TypeVar("T")
_GLANCE = 2.0
"""Seconds for a look at the ledger."""
_RUN_ID = re.compile(r"[^./\x00-\x1f][^/\x00-\x1f]{0,99}")


class StoreHost:
    """Where the ledger of one run lives.

    `host` is the address under which other nodes reach this one, when there are any; None keeps the private server
    on a unix socket.
    """

    def __init__(
        self, section: StoreSection, directory: RunDir, run_id: str, host: str | None, patience: float = 60.0
    ) -> None:
        """`patience`: seconds that a private server may take to read its file before anybody waits for it. Later it has
        `store.deadline`, after which whoever needs it gives up."""
        self._server: PrivateServer | None = None
        self.restarts, self._most_restarts = 0, section.max_restarts
        self._deadline, self._answered = section.deadline, time.monotonic()
        self._frozen = ""
        if section.url is None:
            places = directory.store, directory.log("redis")
            self._server = PrivateServer(*places, fsync=section.fsync, host=host, deadline=section.deadline)
            self._server.start(patience)
            self.address = self._server.address(run_id, section.deadline)
        else:
            self.address = StoreAddress(section.url, run_id, section.password(), section.deadline)
        self.store = self.address.connect()
        self.glance = replace(self.address, deadline=_GLANCE).connect()
        """For looks that are not worth waiting for: whoever revives the server must not wait for it."""
        self._untold: list[str] = []
        """Why the server had died when it was started again in the middle of a call."""

    def surely(self, ask: Callable[[RedisStore], T]) -> T:
        """The answer to a call that must not fail because the server is dead: it is started again meanwhile. Whoever
        revives it asks in this way. Raises StoreError when the call is refused, or not answered within
        `store.deadline`."""
        began = time.monotonic()
        while True:
            try:
                return ask(self.glance)
            except Away:
                cause = self._start_again()
                if cause is not None:
                    self._untold.append(cause)
                elif time.monotonic() - began > self._deadline:
                    raise
                else:
                    self.is_silent()

    def revive(self) -> str | None:
        """Start the private server again when it has died; returns why it had, also when it was started again since the
        last time that this was asked. Raises StoreError when it dies again and again. What was acknowledged is in its
        append-only file."""
        return self._untold.pop(0) if self._untold else self._start_again()

    def _start_again(self) -> str | None:
        if self._server is None or self._server.alive:
            return None
        cause, self._frozen = self._frozen or self._server.cause_of_death() or "redis-server ended", ""
        self.restarts += 1
        if self.restarts > self._most_restarts:
            raise StoreError(
                f"the private store has died {self.restarts} times (store.max_restarts is {self._most_restarts}); the "
                f"last time: {cause}"
            )
        self._server.start()
        self.answers()
        return cause

    def answers(self) -> None:
        """A look at the ledger was answered."""
        self._answered = time.monotonic()

    def is_silent(self) -> None:
        """A look at the ledger was not answered. Ends a private server that lives and says nothing while its clients
        still wait for it: `revive` starts it again."""
        silent = time.monotonic() - self._answered
        if self._server is not None and self._server.alive and silent > self._deadline / 2:
            self._frozen = f"it had not answered for {silent:.0f} s, half of store.deadline, and was ended"
            self._server.kill()

    def close(self) -> None:
        """Close the connections and end the private server."""
        self.store.close()
        self.glance.close()
        if self._server is not None:
            self._server.stop()


def run_id_of(directory: RunDir) -> str:
    """The name under which a run is known in a store: the same after a resume, and unlike that of any other run.

    Raises RunDirError for a file that holds no such name: folders are called by it, and emptied."""
    path = directory.path / ".run-id"
    if not path.exists():
        path.write_text(f"{directory.path.name[:80]}-{uuid.uuid4().hex[:8]}")
    found = path.read_text()
    if not _RUN_ID.fullmatch(found):
        raise RunDirError(
            f"{path} holds {found[:100]!r}, which is no name of a run: one has at most 100 characters, no slash, and "
            "does not begin with a dot. Remove the file, and start again"
        )
    return found
