"""How many actors of a role a run wants, and the way there: some join and some leave.

A rollout worker that joins starts its engine, fetches the published weights, proves them by checksum and probe, and
only then reserves prompts; the others do not notice. One that leaves takes no more, hands its unfinished answers back
with their tokens, log-probs and versions, and ends; whoever reserves them next goes on where it stopped. A scorer that
joins is given groups once it answers; one that leaves is given no more and ends when it has answered for what it had.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.deploy.crews import Crew
from penstock.deploy.fleet import Member
from penstock.deploy.journal import Journal
from penstock.services.contracts import PenstockError
from penstock.services.control import Refused


class Scaling:
    """Brings the actors of one role to the number that is wanted. `look` never waits."""

    def __init__(self, crew: Crew, journal: Journal, lapse: Callable[[Member], object] = lambda _: None) -> None:
        """`lapse` is called for one that died on its way out, with what it held."""
        self._crew, self._journal, self._lapse = crew, journal, lapse
        self.wanted = len(crew.members)
        """Those that leave are not counted, those that start or start again are."""
        self.asked = 0
        """How often the number has been changed."""

    @property
    def staying(self) -> list[Member]:
        """Those that have not been asked to leave, oldest first."""
        return self._crew.staying

    def ask(self, count: int) -> str:
        """Have `count` of them. Raises Refused when there may not be so many; nothing is changed then."""
        crew, before = self._crew, self.wanted
        note = self._room(count) if count > before else ""
        if not crew.least <= count <= crew.most:
            why = f": {crew.why_least}" if 0 <= count < crew.least else ""
            raise Refused(f"{crew.many(count)} cannot be had{why}; allowed: {crew.least} to {crew.most}")
        self._want(count)
        self.look()
        if count == before:
            return f"{crew.many(count)} wanted already"
        come_and_go = f"{crew.noun}s wanted: {before} before, now {count}; `penstock status` shows them come and go"
        return f"{come_and_go}. {note}" if note else come_and_go

    def _room(self, count: int) -> str:
        """What else should be known of so many. Raises Refused with what is lacking: the run's own bound, or room."""
        try:
            return self._crew.require_room(count)
        except PenstockError as error:
            raise Refused(str(error)) from error

    def has(self, name: str) -> bool:
        """Whether one of this name is there and could leave."""
        return any(member.name == name for member in self.staying)

    def remove(self, name: str) -> str:
        """Let the one of this name leave, and want one less. Raises Refused for the last that is needed."""
        crew = self._crew
        found = next(member for member in self.staying if member.name == name)
        if self.wanted <= crew.least:
            raise Refused(f"{name} must stay: {crew.why_least}; let another join first")
        self._want(self.wanted - 1)
        self._let_go(found)
        return f"{name} {crew.parting} and leaves; wanted now: {crew.many(self.wanted)}"

    def give_up(self, member: Member) -> None:
        """One that joined and died again and again: the run goes on without it."""
        self._want(self.wanted - 1)
        member.leaving = True
        self._journal.warn(f"{member.name} is given up; wanted now: {self._crew.many(self.wanted)}: {member.cause}")

    def may_give_up(self, member: Member) -> bool:
        """Whether the run can go on without it: it joined later, and enough others stay."""
        return member.added and len(self.staying) > self._crew.least

    def look(self) -> None:
        """Start who is missing, ask who is too many to leave, forget who is gone."""
        crew = self._crew
        leaving = [member for member in crew.members if member.leaving]
        surplus = len(crew.members) - len(leaving) - self.wanted
        for _ in range(-surplus):
            joined = crew.add()
            joined.added = True
            self._journal.tell("joining", f"{joined.name} joins and starts", name=joined.name)
        for member in self._dispensable()[:surplus] if surplus > 0 else ():
            self._let_go(member)
            leaving.append(member)
        for member in leaving:
            if member.state == "running" and crew.released(member):
                member.kill()
            if member.state in ("ended", "dead"):
                self._forget(member)

    def _want(self, count: int) -> None:
        self.wanted = count
        self.asked += 1

    def _dispensable(self) -> list[Member]:
        """Who should leave first: those that do not work yet, then the youngest."""
        youngest_first = self.staying[::-1]
        youngest_first.sort(key=lambda member: member.state == "running")
        return youngest_first

    def _let_go(self, member: Member) -> None:
        member.leave()
        held = member.view().in_flight
        self._journal.tell("leaving", f"{member.name} {self._crew.parting} and leaves", name=member.name, held=held)

    def _forget(self, member: Member) -> None:
        """What a worker that died on its way held goes back; what a scorer held is scored again."""
        died = f" It died before it had: {member.cause}" if member.state == "dead" else ""
        crew = self._crew
        if died:
            self._lapse(member)
        member.kill()
        crew.members.remove(member)
        crew.left.append(member)
        facts = crew.last_words(member)
        self._journal.tell("left", f"{member.name} has left.{died}", name=member.name, cause=member.cause, **facts)
