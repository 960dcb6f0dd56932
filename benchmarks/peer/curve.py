"""What either side leaves of a run: when each step ended, what it had trained on, how good its samples were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SMOOTHED = 3
"""Steps whose sampled answers are judged together: 768 answers."""


@dataclass(frozen=True)
class Curve:
    """One run. Time zero is when the first prompt may be asked; what came before is `startup`, in seconds."""

    startup: float
    seconds: Sequence[float]
    """At the end of each step."""
    tokens: Sequence[float]
    """Response tokens trained on up to then."""
    accuracy: Sequence[float]
    """Mean reward of the answers that were sampled for the step."""
    length: float
    """Mean tokens of an answer."""

    def reached(self, goal: float) -> float | None:
        """Seconds until the mean over the last steps was at least `goal`; None when it never was."""
        for end in range(SMOOTHED, len(self.accuracy) + 1):
            if sum(self.accuracy[end - SMOOTHED : end]) / SMOOTHED >= goal:
                return self.seconds[end - 1]
        return None

    def pace(self, warm: int) -> float:
        """Trained response tokens per second, from the end of step `warm` to the end of the last."""
        if len(self.seconds) <= warm:
            raise ValueError(f"{len(self.seconds)} steps are too few to leave out {warm}")
        return (self.tokens[-1] - self.tokens[warm - 1]) / (self.seconds[-1] - self.seconds[warm - 1])
