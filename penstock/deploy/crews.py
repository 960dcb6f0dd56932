"""The actors of a run that may come and go while it goes on, by role: rollout workers and scorers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    last_words: Callable[[Member], Mapping[str, Any]]
    """What should be known of one that has left."""
    released: Callable[[Member], bool] = lambda _: False
    """Whether nobody waits any more for what one that leaves has, so that it can be ended. Those that end by themselves
    are never."""
    members: list[Member] = field(default_factory=list)
    left: list[Member] = field(default_factory=list)
    """Those that have left the run for good, while it went on."""
    _numbers: int = 0

    @property
    def staying(self) -> list[Member]:
        """Those that have not been asked to leave, oldest first."""
        return [member for member in self.members if not member.leaving]

    def many(self, count: int) -> str:
        """So many of them, in words."""
        return f"{count} {self.noun}{'' if count == 1 else 's'}"

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
        self._told: tuple[str, ...] = ()

    @property
    def handles(self) -> dict[str, Any]:
        """By name. Those that the run begins with are there while they start; Ray keeps calls until they have."""
        there = [m for m in self._scorers.staying if m.state not in ("dead", "ended")]
        able = [m for m in there if not m.away and (m.state == "running" or not m.added)]
        return {member.name: member.handle for member in able or there}

    def look(self) -> None:
        """Tell the workers when the set has changed."""
        handles = self.handles
        if tuple(handles) == self._told or not handles:
            return
        self._told = tuple(handles)
        self.number += 1
        for worker in self._workers.members:
            if worker.state in ("starting", "ready", "running"):
                worker.handle.use_scorers.remote(self.number, handles)

    def released(self, scorer: Member) -> bool:
        """Whether no worker can be waiting for what `scorer` has: all have confirmed a set without it, and none has a
        group there. A worker that is still starting has given nobody anything."""
        if scorer.name in self._told:
            return False  # the workers do not know yet that it leaves
        said = [w.stats.get("scorers") for w in self._workers.members if w.state == "running"]
        return all(s and s["set"] >= self.number and not s["in_hand"].get(scorer.name) for s in said)
