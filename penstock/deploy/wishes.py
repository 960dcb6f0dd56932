"""What has been asked of a run and still holds: as the driver knows it, ahead of what the learner says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.services.rundir import RunEvent

GUARD = "guard "
"""How the name of a guard begins, where it asks for something."""


def paused_by(events: Sequence[RunEvent]) -> str:
    """Who has paused a run with these events, oldest first, and has not let it go on; empty where nobody has."""
    who = ""
    for event in events:
        asked = event.facts.get("asked") if event.kind == "steered" else None
        if isinstance(asked, Mapping) and asked.get("type") in ("pause", "resume"):
            who = str(event.facts.get("by", "")) if asked["type"] == "pause" else ""
    return who


class Wishes:
    """The driver's side. The learner hears of a turn later than it was asked for, and its reports are older still: so
    every request bears a number, a report says up to which it has heard, and what is younger counts beside it."""

    def __init__(self) -> None:
        self.paused_by = ""
        """Who has paused the run; empty while it is not paused."""
        self.closed_by: list[str] = []
        """Who keeps the gate closed by hand, each by a reason of his own."""
        self._said: Mapping[str, float] = {}
        self._turned: dict[int, Mapping[str, float]] = {}
        self._by_hand: set[str] = set()
        self._number = 0

    @property
    def coefficients(self) -> dict[str, float]:
        """Every coefficient that may be turned, as the next step takes it; empty until the learner has begun."""
        found = dict(self._said)
        for changes in self._turned.values() if found else ():
            found |= changes
        return found

    def numbered(self) -> int:
        """The number of one more request."""
        self._number += 1
        return self._number

    def turn(self, changes: Mapping[str, float]) -> int:
        """These were asked for; returns the number of the request."""
        number = self.numbered()
        self._turned[number] = dict(changes)
        self._by_hand |= set(changes)
        return number

    def again(self) -> tuple[dict[str, float], int] | None:
        """The learner was started again from a checkpoint: what was turned on purpose is turned once more, to where it
        is now; with the number of that request. None where nothing was."""
        changes = {name: value for name, value in self.coefficients.items() if name in self._by_hand}
        self._turned.clear()
        return (changes, self.turn(changes)) if changes else None

    def learned(self, said: Mapping[str, float], heard: int) -> None:
        """The learner says where its coefficients are, and up to which request it has heard."""
        self._said = dict(said)
        self._turned = {number: changes for number, changes in self._turned.items() if number > heard}

    def close(self, by: str) -> None:
        """`by` wants the gate closed."""
        if by not in self.closed_by:
            self.closed_by.append(by)

    def open(self, by: str) -> None:
        """A guard takes back its own wish; a person's word is for all."""
        self.closed_by = [other for other in self.closed_by if other != by] if by.startswith(GUARD) else []

    @property
    def held(self) -> bool:
        """Whether the gate is closed, whatever the lag says."""
        return bool(self.closed_by or self.paused_by)
