"""The run's store: a private server that is started, watched and ended with the run, or a server somewhere else."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import replace

from penstock.services.contracts import StoreError
from penstock.services.rundir import RunDir, RunDirError
from penstock.services.store.config import StoreSection
from penstock.services.store.connection import StoreAddress
from penstock.services.store.server import PrivateServer

MOST_RESTARTS = 10
"""A private server that dies more often has a cause that restarting does not mend, such as a full disk."""
_GLANCE = 2.0
"""Seconds for a look at the ledger."""
_RUN_ID = re.compile(r"[^./\x00-\x1f][^/\x00-\x1f]{0,99}")
_WORTH_TELLING = 3.0
"""Seconds without an answer of the store after which people are told."""


class StoreHost:
    """Where the ledger of one run lives.

    `host` is the address under which other nodes reach this one, when there are any; None keeps the private server
    on a unix socket.
    """

    def __init__(self, section: StoreSection, directory: RunDir, run_id: str, host: str | None) -> None:
        self._server: PrivateServer | None = None
        self.restarts = 0
        self._deadline, self._answered, self._told = section.deadline, time.monotonic(), False
        self._frozen = ""
        if section.url is None:
            self._server = PrivateServer(directory.store, directory.log("redis"), fsync=section.fsync, host=host)
            self._server.start()
            self.address = self._server.address(run_id, section.deadline)
        else:
            self.address = StoreAddress(section.url, run_id, section.password(), section.deadline)
        self.store = self.address.connect()
        self.glance = replace(self.address, deadline=_GLANCE).connect()
        """For looks that are not worth waiting for: whoever revives the server must not wait for it."""

    def revive(self) -> str | None:
        """Start the private server again when it has died; returns why it had. Raises StoreError when it dies again and
        again. What was acknowledged is in its append-only file."""
        if self._server is None or self._server.alive:
            return None
        cause, self._frozen = self._frozen or self._server.cause_of_death() or "redis-server ended", ""
        self.restarts += 1
        if self.restarts > MOST_RESTARTS:
            raise StoreError(f"the private store has died {self.restarts} times; the last time: {cause}")
        self._server.start()
        self.answers()
        return cause

    def answers(self) -> None:
        """A look at the ledger was answered."""
        self._answered, self._told = time.monotonic(), False

    def is_silent(self, error: StoreError) -> str:
        """A look at the ledger was not answered. Returns what there is to tell people about it, once; ends a private
        server that lives and says nothing, while its clients still wait for it: `revive` starts it again."""
        silent = time.monotonic() - self._answered
        if self._server is not None and self._server.alive and silent > self._deadline / 2:
            self._frozen = f"it had not answered for {silent:.0f} s, half of store.deadline, and was ended"
            self._server.kill()
            return ""
        if self._told or silent < _WORTH_TELLING:
            return ""
        self._told = True
        return (
            f"the store has not answered for {silent:.0f} s; workers and learner wait for it, up to "
            f"{self._deadline:g} s (store.deadline): {error}"
        )

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
