"""Coefficients that may be turned while a run goes on: what they are called, where they began, what they may be.

Plain numbers and configuration, no tensors: the driver, guards and `penstock check` look here as well as the learner.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from penstock.learner.config import AlgorithmSection, LearnerSection
from penstock.services.control import Refused
from penstock.services.settings import Section

LEARNING_RATE, MAX_LAG, ENTROPY = "learning_rate", "max_lag", "entropy_coefficient"
KL, OBJECTIVE = "kl.coefficient", "objective.coefficient"
_CLIPS = ("objective.clip_low", "objective.clip_high")
_ALSO: dict[str, tuple[str, ...]] = {
    "kl.coef": (KL,),
    "lr": (LEARNING_RATE,),
    "learner.learning_rate": (LEARNING_RATE,),
    "entropy.coef": (ENTROPY,),
    "entropy.coefficient": (ENTROPY,),
    "clip": _CLIPS,
    "staleness.max_lag": (MAX_LAG,),
}
"""Other words for them; one word may turn two together."""
HIGHEST_LAG = 1024


class Dials:
    """Those of one run. Names are the run file's keys without `algorithm.`, and `learning_rate` and `max_lag`.

    A number may be turned where the run began with one: a KL that began at 0 has no reference model to be measured
    against, and a bound that was left out has no function that heeds it.
    """

    def __init__(self, algorithm: AlgorithmSection, learner: LearnerSection, max_lag: int) -> None:
        self._algorithm, self._learner = algorithm, learner
        self.start: Mapping[str, float] = {
            LEARNING_RATE: learner.learning_rate,
            MAX_LAG: float(max_lag),
            ENTROPY: algorithm.entropy_coefficient,
            **({KL: algorithm.kl.coefficient} if algorithm.needs_reference else {}),
            **_numbers("objective", algorithm.objective.coefficients()),
            **_numbers("trust", algorithm.trust.coefficients()),
        }
        """Where the run file has them. A learning rate is the peak of its schedule."""

    def find(self, word: str) -> tuple[str, ...]:
        """The coefficients that `word` means. Raises Refused, which says what there is and what is nearest."""
        names = names_of(word)
        if meant := tuple(each for each in names if each in self.start):
            return meant
        if KL in names:
            raise Refused(
                f"{word}: this run has no KL to a reference, algorithm.kl.coefficient is 0 in its run file and no "
                "reference model is there. Start it with a small one, as 1e-6, to be able to raise it"
            )
        known = (*self.start, *(also for also, names in _ALSO.items() if set(names) <= set(self.start)))
        close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
        raise Refused(
            f"{word!r} is no coefficient of this run that can be changed; there are: {', '.join(self.start)}"
            + (f"; nearest: {close[0]}" if close else "")
        )

    def check(self, name: str, value: float) -> None:
        """Raises Refused, which says what is allowed, for a value that `name` may not have."""
        if not math.isfinite(value):
            raise Refused(f"{name} cannot be {value:g}: it must be a number")
        if name == MAX_LAG:
            if value != int(value) or not 0 <= value <= HIGHEST_LAG:
                raise Refused(f"{name} cannot be {value:g}; allowed: whole numbers from 0 to {HIGHEST_LAG}")
            return
        if name == KL and value == 0 and self._algorithm.kl.controller.kind != "fixed":
            raise Refused(f"{name} cannot be 0: its controller multiplies it, and it would stay 0 for good")
        section, key = self._place(name)
        allowed: TypeAdapter[float] = TypeAdapter(type(section).model_fields[key].rebuild_annotation())
        try:
            allowed.validate_python(value)
        except ValidationError as error:
            why = error.errors(include_url=False)[0]["msg"]
            raise Refused(f"{name} cannot be {value:g}: {why[0].lower()}{why[1:]}") from error

    def _place(self, name: str) -> tuple[Section, str]:
        """The section that bounds it, and its key there."""
        if name == LEARNING_RATE:
            return self._learner, name
        head, _, key = name.rpartition(".")
        section: Section = getattr(self._algorithm, head) if head else self._algorithm
        return section, key


def names_of(word: str) -> tuple[str, ...]:
    """What `word` means, whether or not a run has it."""
    name = word.removeprefix("algorithm.")
    return _ALSO.get(name, (name,))


def _numbers(cell: str, coefficients: Mapping[str, object]) -> dict[str, float]:
    return {f"{cell}.{key}": value for key, value in coefficients.items() if isinstance(value, float)}
