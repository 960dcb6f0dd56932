"""Keeps the leases of a worker's groups alive, from a thread of its own.

An engine may compile and a judge may think for minutes; that is no reason to play a group twice.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from penstock.services.contracts import StoreError
from penstock.services.replay import ReplayStore, Ticket

log = logging.getLogger(__name__)


def holder(worker: str, life: int) -> str:
    """The name under which a worker holds leases: another one each time that its supervisor starts it, so that those
    of a process that is gone can be ended while the next one has some already. A resumed run counts anew: by then
    nobody holds any."""
    return f"{worker}.{life}"


class Leases:
    """A context manager: the thread runs inside of the `with` block."""

    def __init__(self, store: ReplayStore, worker: str, seconds: float) -> None:
        self._store = store
        self._worker = worker
        self.seconds = seconds
        self._lock = threading.Lock()
        self._held: dict[int, Ticket] = {}
        self._lost: list[Ticket] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"leases-{worker}", daemon=True)

    def __enter__(self) -> Leases:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=self.seconds)

    def hold(self, ticket: Ticket) -> None:
        with self._lock:
            self._held[ticket.index] = ticket

    def drop(self, ticket: Ticket) -> None:
        with self._lock:
            if self._held.get(ticket.index) is ticket:
                del self._held[ticket.index]

    def lost(self) -> list[Ticket]:
        """Tickets that turned out to be somebody else's since this was last asked."""
        with self._lock:
            lost, self._lost = self._lost, []
        return lost

    def _renew(self) -> None:
        while not self._ended.wait(self.seconds / 3):
            with self._lock:
                held = dict(self._held)
            if not held:
                continue
            try:
                gone = self._store.renew(self._worker, list(held.values()), self.seconds)
            except StoreError as error:
                # The worker's own calls meet the same trouble and decide; fences make a late renewal harmless.
                log.warning("leases of %s were not renewed: %s", self._worker, error)
                continue
            with self._lock:
                for index in gone:
                    if self._held.get(index) is held[index]:
                        self._lost.append(self._held.pop(index))
