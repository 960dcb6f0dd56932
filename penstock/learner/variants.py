"""What `penstock whatif` is asked to compare: algorithms for batches that another one has made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from penstock.learner.algorithms.judging import Sizes
from penstock.learner.config import AlgorithmSection
from penstock.services.contracts import PenstockError


class VariantError(PenstockError):
    """Variants that cannot be; the text says of each what was found and what is allowed."""


@dataclass(frozen=True)
class Variant:
    """An algorithm under which batches are evaluated."""

    label: str
    section: AlgorithmSection
    reason: str = ""
    """Why it is not: its cells contradict each other, or the sizes of the run. Empty where they do not."""


class Asked(NamedTuple):
    """What is compared with the run's own algorithm."""

    variants: list[Variant]
    notes: list[str]
    """What a reader of the comparison should know of what is not in it."""


Ask = Callable[[AlgorithmSection, Sizes], Asked]
"""The run's own algorithm and its sizes to what is compared with it. Raises VariantError."""
