"""How many rollout workers a run wants, and the way there: workers that join and workers that leave.

A joining worker starts its engine, fetches the published weights, proves them by checksum and probe, and only then
reserves prompts; the others do not notice. A leaving one takes no more, hands its unfinished answers back with their
tokens, log-probs and versions, and ends; whoever reserves them next goes on where it stopped.
"""

from __future__ import annotations

from penstock.deploy.fleet import Member
from penstock.deploy.journal import Journal
from penstock.deploy.parts import Parts
from penstock.rollout.config import MOST_WORKERS
from penstock.services.contracts import PenstockError
from penstock.services.control import Refused


class Scaling:
    """Brings the workers there are to the number that is wanted. `look` never waits."""

    def __init__(self, parts: Parts, journal: Journal) -> None:
        self._parts, self._journal = parts, journal
        self.wanted = len(parts.workers)
        """Rollout workers; those that leave are not counted, those that start or start again are."""

    @property
    def staying(self) -> list[Member]:
        """The workers that have not been asked to leave, oldest first."""
        return [worker for worker in self._parts.workers if not worker.leaving]

    def ask(self, count: int) -> str:
        """Have `count` workers. Raises Refused when the cluster has no room for them; nothing is changed then."""
        if not 0 <= count <= MOST_WORKERS:
            raise Refused(f"{count} rollout workers cannot be had; allowed: 0 to {MOST_WORKERS}")
        before = self.wanted
        if count > before:
            try:
                self._parts.require_room(count)
            except PenstockError as error:
                raise Refused(str(error)) from error
        self.wanted = count
        self.look()
        return f"{before} rollout workers were wanted, now {count}; `penstock status` shows them come and go"

    def remove(self, name: str) -> str:
        """Let one worker leave, and want one less. Raises Refused for a name that nobody here has."""
        found = next((worker for worker in self.staying if worker.name == name), None)
        if found is None:
            there = ", ".join(worker.name for worker in self.staying) or "none"
            raise Refused(f"there is no rollout worker {name!r} that could leave; there are: {there}")
        self.wanted -= 1
        self._let_go(found)
        return f"{name} hands on what it holds and leaves; {self.wanted} rollout workers are wanted now"

    def give_up(self, worker: Member) -> None:
        """A worker that joined and died again and again: the run goes on without it."""
        self.wanted -= 1
        worker.leaving = True
        self._journal.warn(f"{worker.name} is given up; {self.wanted} rollout workers are wanted now: {worker.cause}")

    def look(self) -> None:
        """Start who is missing, ask who is too many to leave, forget who is gone."""
        for _ in range(self.wanted - len(self.staying)):
            joined = self._parts.add_worker()
            joined.added = True
            self._journal.tell("joining", f"{joined.name} joins and starts its engine", name=joined.name)
        surplus = len(self.staying) - self.wanted
        for worker in self._dispensable()[: max(0, surplus)]:
            self._let_go(worker)
        for worker in [w for w in self._parts.workers if w.leaving and w.state in ("ended", "dead")]:
            self._forget(worker)

    def _dispensable(self) -> list[Member]:
        """Who should leave first: those that are not generating yet, then the youngest."""
        youngest_first = self.staying[::-1]
        youngest_first.sort(key=lambda worker: worker.state == "running")
        return youngest_first

    def _let_go(self, worker: Member) -> None:
        worker.leave()
        held = worker.view().in_flight
        self._journal.tell("leaving", f"{worker.name} hands on what it holds and leaves", name=worker.name, held=held)

    def _forget(self, worker: Member) -> None:
        """What a worker that died on its way held goes back when its leases end."""
        died = f" It died before it had: {worker.cause}" if worker.state == "dead" else ""
        worker.kill()
        self._parts.workers.remove(worker)
        self._parts.left.append(worker)
        self._journal.tell("left", f"{worker.name} has left.{died}", name=worker.name, cause=worker.cause)
