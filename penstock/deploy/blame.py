"""Of ranks that died, the one that the others only followed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from penstock.deploy.fleet import Member
from penstock.learner.rank import RankLost
from penstock.services.contracts import PenstockError

Fault = Literal["process", "own", "contact"]
"""Of a dead rank: its process is gone or torch failed in it; it raised what it would raise again; it only missed
another one."""


@dataclass(frozen=True)
class Deaths:
    """Ranks that died of one cause."""

    dead: list[Member]
    first: Member
    """Whose death explains the others'."""
    fault: Fault


class Blame:
    """Ranks wait for each other: when one dies the others lose contact, and often say so before Ray has noticed."""

    def __init__(self, patience: float) -> None:
        """`patience` is how long (`deadlines.blame`, seconds) a lost contact waits for the death that explains it."""
        self._patience = patience
        self._since = 0.0

    def find(self, ranks: Sequence[Member]) -> Deaths | None:
        """None while none of `ranks` is dead, and while another one's death may explain the first that is."""
        dead = [member for member in ranks if member.state == "dead"]
        if not dead:
            return None
        faults: dict[Fault, list[Member]] = {"process": [], "own": [], "contact": []}
        for member in dead:
            faults[fault_of(member)].append(member)
        self._since = self._since or time.monotonic()
        early = time.monotonic() - self._since < self._patience
        if early and not faults["process"] and len(dead) < len(ranks):
            return None
        self._since = 0.0
        # Of several that stand still one may only wait for another, whose process hangs as a whole.
        first = min(faults["process"] or faults["own"] or dead, key=lambda member: not member.mute)
        return Deaths(dead, first, fault_of(first))

    def excuse(self, seconds: float) -> None:
        """So long the driver did not move: that is no time to explain a death in."""
        self._since += seconds if self._since else 0.0


def fault_of(member: Member) -> Fault:
    """What a dead rank died of."""
    raised = member.raised
    if isinstance(raised, RankLost):
        return "contact"
    failed = raised is None or (isinstance(raised, RuntimeError) and not isinstance(raised, PenstockError))
    return "process" if failed else "own"
