"""The actors of a run that may come and go while it goes on, by role: rollout workers and scorers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.deploy.fleet import Member
from penstock.services.control import ScalableRole

Starter = Callable[[str, Path, int], Any]
"""Name, log and number of earlier starts → the handle of an actor that is starting."""


@dataclass
class Crew:
    """All actors of one role, and how there comes to be one more."""

    role: ScalableRole
    noun: str
    """What one of them is called, for people."""
    start: Starter
    log: Callable[[str], Path]
    require_room: Callable[[int], str]
    """Raises PenstockError, which says what is lacking, when there may not be so many; returns what else should be
    known of it, often nothing."""
    least: int
    most: int
    why_least: str
    parting: str
    """What one that leaves does with what it has."""
    held: Callable[[Member], bool] = lambda _: False
    """Whether somebody still waits for what this one has, so that it must not be ended yet."""
    members: list[Member] = field(default_factory=list)
    left: list[Member] = field(default_factory=list)
    """Those that have left the run for good, while it went on."""
    _numbers: int = 0

    @property
    def staying(self) -> list[Member]:
        """Those that have not been asked to leave, oldest first."""
        return [member for member in self.members if not member.leaving]

    def add(self) -> Member:
        """One more; returns at once, while it starts."""
        name = f"{self.role}-{self._numbers}"
        self._numbers += 1
        log = self.log(name)
        member = Member(name, self.role, log, lambda restarts: self.start(name, log, restarts))
        member.launch()
        self.members.append(member)
        return member


class ScorerSet:
    """Which scorers the rollout workers may use now. Every change is sent to all of them; those that start later are
    given the set of that moment."""

    def __init__(self, scorers: Crew, workers: Crew) -> None:
        self._scorers, self._workers = scorers, workers
        self.number = 0
        """Counts the changes."""
        self._names: tuple[str, ...] = ()

    @property
    def handles(self) -> dict[str, Any]:
        """By name. Those that the run begins with are there while they start; Ray keeps calls until they have."""
        there = [m for m in self._scorers.staying if m.state not in ("dead", "ended")]
        able = [m for m in there if not m.away and (m.state == "running" or not m.added)]
        return {member.name: member.handle for member in able or there}

    def look(self) -> None:
        """Tell the workers when the set has changed."""
        handles = self.handles
        if tuple(handles) == self._names or not handles:
            return
        self._names = tuple(handles)
        self.number += 1
        for worker in self._workers.members:
            if worker.state in ("starting", "ready", "running"):
                worker.handle.use_scorers.remote(self.number, handles)

    def held(self, scorer: Member) -> bool:
        """Whether a worker may still wait for what `scorer` has: it has not confirmed the present set, or has groups
        there. One that is still starting has given nobody anything."""
        for worker in self._workers.members:
            if worker.state == "running":
                said = worker.stats.get("scorers", {"set": -1, "in_hand": {}})
                if said["set"] < self.number or said["in_hand"].get(scorer.name):
                    return True
        return False
