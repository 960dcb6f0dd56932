"""Of ranks that died, the one that the others only followed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from penstock.deploy.fleet import Member
from penstock.learner.rank import RankLost
from penstock.services.contracts import PenstockError


class Fault(IntEnum):
    """What a rank died of; of several the smallest explains the others."""

    PROCESS = 0
    """Its process is gone, or hung as a whole and was ended."""
    OWN = 1
    """It raised what it would raise again."""
    TORCH = 2
    """Torch failed in it: by itself, or because another one was gone in the middle of a collective."""
    CONTACT = 3
    """It only missed another one, or stood still where it may have waited for another."""


@dataclass(frozen=True)
class Deaths:
    """Ranks that died of one cause."""

    dead: list[Member]
    first: Member
    """Whose death explains the others'."""
    fault: Fault
    """Of the first."""


class Blame:
    """Ranks wait for each other: when one dies the others fail, and often say so before Ray has noticed."""

    def __init__(self, patience: float) -> None:
        """`patience` is how long (`deadlines.blame`, seconds) a death waits for another that explains it."""
        self._patience = patience
        self._since = 0.0

    def find(self, ranks: Sequence[Member]) -> Deaths | None:
        """None while none of `ranks` is dead, and while another one's death may explain the first that is."""
        dead = [member for member in ranks if member.state == "dead"]
        if not dead:
            return None
        first = min(dead, key=fault_of)
        self._since = self._since or time.monotonic()
        early = time.monotonic() - self._since < self._patience
        if early and fault_of(first) is not Fault.PROCESS and len(dead) < len(ranks):
            return None
        self._since = 0.0
        return Deaths(dead, first, fault_of(first))

    def excuse(self, seconds: float) -> None:
        """So long the driver did not move: that is no time to explain a death in."""
        self._since += seconds if self._since else 0.0


def fault_of(member: Member) -> Fault:
    """What a dead rank died of."""
    raised = member.raised
    if member.gone or member.mute:
        return Fault.PROCESS
    if raised is None or isinstance(raised, RankLost):
        return Fault.CONTACT
    torch_failed = isinstance(raised, RuntimeError) and not isinstance(raised, PenstockError)
    return Fault.TORCH if torch_failed else Fault.OWN
