"""What a row of the table of algorithms is. Plain configuration, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from penstock.learner.algorithms.cells import BaselineCell, CreditCell, NoValue, Outcome, Value, Whitening
from penstock.learner.algorithms.loss_cells import (
    KL,
    KeepAll,
    ObjectiveCell,
    Reduction,
    Rejection,
    TruncatedIS,
    TrustCell,
)


@dataclass(frozen=True)
class Algorithm:
    """One row: the parts of an algorithm, with the defaults of its paper."""

    name: str
    summary: str
    paper: str
    """arXiv number and equation, and where the row departs from it."""
    baseline: BaselineCell
    objective: ObjectiveCell
    reduction: Reduction
    whitening: Whitening = Whitening()
    credit: CreditCell = Outcome()
    trust: TrustCell = TruncatedIS()
    reject: Rejection = KeepAll()
    kl: KL = KL()
    value: Value = NoValue()
    group_filter: Literal["signal", "all"] = "signal"
    """`signal`: groups whose rewards are all equal are replaced by others; `all`: they stay in the batch."""
    quorum: int = 2
    """Fewest scored members with which a group is still of use."""
    entropy_coefficient: float = 0.0
    equation: str = ""
    """The loss, as plain text; shown by `penstock algorithms NAME`."""
    traps: tuple[str, ...] = ()
    """What implementations have got wrong; shown by `penstock algorithms NAME`."""

    def cells(self) -> dict[str, Any]:
        """The row's parts by the names that a run file uses."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in WORDS}


WORDS = ("name", "summary", "paper", "equation", "traps")
"""Fields for people; the others are cells."""
ADDED_WEIGHTS = "weights by min(π_prox/μ, 2) are Penstock's addition, since another engine draws the tokens"
"""Said of rows whose paper takes the sampler and π_prox to be one."""
