"""A row of the table with its coefficients filled in: what the feed and the train step call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from penstock.learner.algorithms import kl, reductions
from penstock.learner.algorithms.corrections import TrustRegion
from penstock.learner.algorithms.objectives import Facts

if TYPE_CHECKING:
    from penstock.learner.config import AlgorithmSection


@dataclass(frozen=True)
class BoundAlgorithm:
    """The functions of one algorithm. Shapes as in `advantages`, `objectives`, `corrections`, `kl`, `reductions`."""

    baseline: Callable[[Tensor, Tensor], Tensor]
    """(rewards, scored) [members] → advantages [members]."""
    objective: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Facts]]
    """(logp, logp_prox, logp_sampler, advantages, mask) → loss per token, facts."""
    trust: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[TrustRegion, Facts]]
    """(logp_prox, logp_sampler, advantages, mask) → weights and mask, facts."""
    penalty: Callable[[Tensor, Tensor], Tensor] | None
    """(logp, logp_reference) → KL estimate per token, to be added to the loss times `kl_coefficient`."""
    kl_coefficient: float
    reward_kl: float
    """β of the KL that is taken off the reward; 0 where it is in the loss, or nowhere."""
    entropy_coefficient: float
    reduction: Callable[[Tensor, Tensor], Tensor]
    """(counts, groups) [sequences] of the whole mini-batch → weight per sequence."""
    keeps_all_groups: bool
    quorum: int


def bind(section: AlgorithmSection) -> BoundAlgorithm:
    """The functions behind the cells of a resolved section."""
    in_loss = section.kl.coefficient > 0 and section.kl.placement == "loss"
    extra: dict[str, Any] = {} if section.reduction.budget is None else {"budget": section.reduction.budget}
    return BoundAlgorithm(
        baseline=section.baseline.bind(),
        objective=section.objective.bind(),
        trust=section.trust.bind(),
        penalty=kl.ESTIMATORS[section.kl.estimator] if in_loss else None,
        kl_coefficient=section.kl.coefficient if in_loss else 0.0,
        reward_kl=section.kl.coefficient if section.kl.placement == "reward" else 0.0,
        entropy_coefficient=section.entropy_coefficient,
        reduction=functools.partial(reductions.REDUCTIONS[section.reduction.kind], **extra),
        keeps_all_groups=section.group_filter == "all",
        quorum=section.quorum,
    )
