"""A row of the table with its coefficients filled in: what the feed, the assembly and the train step call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from penstock.learner.algorithms import kl, reductions, values
from penstock.learner.algorithms.cells import BaselineCell, NoValue, ValueCredit, ValueHead, Whitening
from penstock.learner.algorithms.corrections import TrustRegion
from penstock.learner.algorithms.loss_cells import PPOKL, Fixed
from penstock.learner.algorithms.objectives import Facts
from penstock.learner.dials import ENTROPY
from penstock.learner.dials import KL as KL_COEFFICIENT
from penstock.learner.dials import OBJECTIVE as OBJECTIVE_COEFFICIENT

if TYPE_CHECKING:
    from penstock.learner.config import AlgorithmSection

STEP_KL = "kl/step"
"""Metric: KL(π_prox‖π) after the last update of the step."""


@dataclass(frozen=True)
class Adaptive:
    """A coefficient that moves after every train step."""

    start: float
    metric: str
    """The step's metric that it follows."""
    move: Callable[[float, float], float]
    """(coefficient, measured) → coefficient."""


@dataclass(frozen=True)
class ValueUse:
    """How values are made use of; None in `BoundAlgorithm.value` where an algorithm has none."""

    credit: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """(rewards, values, last_values, logp_prox, logp_sampler, mask) → advantages, returns; all [rows, window] but
    last_values [rows], the value after an answer's last token, 0 where the answer ended."""
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Facts]]
    """(values, old_values, returns, mask) → loss per token, facts."""
    coefficient: float
    """Of that loss; 1 for a model of its own."""
    bootstrap_truncated: bool
    warmup_steps: int


@dataclass(frozen=True)
class BoundAlgorithm:
    """The functions of one algorithm. Shapes as in `advantages`, `credit`, `objectives`, `corrections`, `rejections`,
    `kl`, `reductions`. [rows, window] tensors are padded; `mask` is True on the tokens that count."""

    baseline: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """(rewards, groups, scored, signal) [answers] of the whole batch → advantages [answers]. `rewards` has any KL
    taken off already; `signal` says whether the answer's group differs in task reward."""
    whiten_sequences: Callable[[Tensor, Tensor], Tensor] | None
    """(advantages, scored) [answers] of the whole batch → advantages."""
    whiten_tokens_eps: float | None
    """Advantages are whitened over the tokens of all ranks, with this added to the deviation; None: they are not."""
    credit: Callable[[Tensor, Tensor, float], Tensor] | None
    """(rewards, actions) [tokens], advantage → advantages [tokens], of one answer; None where `value` gives them."""
    value: ValueUse | None
    objective: Callable[..., tuple[Tensor, Facts]]
    """(logp, logp_prox, logp_sampler, advantages, mask) → loss per token, facts."""
    trust: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[TrustRegion, Facts]]
    """(logp_prox, logp_sampler, advantages, mask) → weights and mask, facts."""
    reject: Callable[..., tuple[Tensor, Facts]]
    """(logp_prox, logp_sampler, advantages, mask, bound) → tokens to keep, facts. `bound` is what `reject_bound` gave,
    infinity without one."""
    reject_bound: Callable[[Tensor], float] | None
    """log-ratios π_prox/μ [tokens] of the whole batch over all ranks → bound on the square of one; None where a
    rejection needs nothing of the whole batch."""
    penalty: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    """(logp, logp_reference, logp_sampler) → KL estimate per token, to be added to the loss times `kl_coefficient`."""
    kl_coefficient: float
    reward_kl: float
    """β of the KL that is taken off the reward; 0 where it is in the loss, or nowhere."""
    entropy_coefficient: float
    reduction: Callable[[Tensor, Tensor], Tensor]
    """(counts, groups) [sequences] of the whole mini-batch → weight per sequence."""
    keeps_all_groups: bool
    quorum: int
    adaptive: Mapping[str, Adaptive] = field(default_factory=dict)
    """Coefficients that move, by KL_COEFFICIENT and OBJECTIVE_COEFFICIENT."""

    def at(self, coefficients: Mapping[str, float]) -> BoundAlgorithm:
        """The same algorithm with its coefficients where they are now, by their names in `dials`; those that are none
        of an algorithm's, as the learning rate, are left to whoever they belong to."""
        changed = self
        if (beta := coefficients.get(KL_COEFFICIENT)) is not None:
            changed = replace(
                changed,
                kl_coefficient=beta if self.penalty is not None else 0.0,
                reward_kl=beta if self.reward_kl > 0 else 0.0,
            )
        if (bonus := coefficients.get(ENTROPY)) is not None:
            changed = replace(changed, entropy_coefficient=bonus)
        if objective := _of_cell("objective", coefficients):
            changed = replace(changed, objective=functools.partial(changed.objective, **objective))
        if trust := _of_cell("trust", coefficients):
            changed = replace(changed, trust=functools.partial(changed.trust, **trust))
        return changed

    @property
    def needs_start(self) -> bool:
        """Whether a step must look at its whole batch before its first update: for values, for a rejection bound, or
        since it is to be compared with the policy after the last one."""
        return self.value is not None or self.reject_bound is not None or self.follows_step

    @property
    def follows_step(self) -> bool:
        """Whether a coefficient follows how far the whole step moves the policy, which takes a pass of its own."""
        return any(each.metric == STEP_KL for each in self.adaptive.values())


def _of_cell(cell: str, coefficients: Mapping[str, float]) -> dict[str, float]:
    """Those of one cell, by the names of its function's arguments."""
    return {name.removeprefix(f"{cell}."): v for name, v in coefficients.items() if name.startswith(f"{cell}.")}


def bind(section: AlgorithmSection) -> BoundAlgorithm:
    """The functions behind the cells of a resolved section."""
    from penstock.learner.algorithms import advantages

    in_loss = section.kl.coefficient > 0 and section.kl.placement == "loss"
    extra: dict[str, Any] = {} if section.reduction.budget is None else {"budget": section.reduction.budget}
    whitening, credit = section.whitening, section.credit
    return BoundAlgorithm(
        baseline=_baseline(section.baseline, section.whitening),
        whiten_sequences=(
            functools.partial(advantages.whiten, eps=whitening.eps) if whitening.over == "sequences" else None
        ),
        whiten_tokens_eps=whitening.eps if whitening.over == "tokens" else None,
        credit=None if isinstance(credit, ValueCredit) else credit.bind(),
        value=_values(section),
        objective=section.objective.bind(),
        trust=section.trust.bind(),
        reject=section.reject.bind(),
        reject_bound=section.reject.bind_bound(),
        penalty=kl.PENALTIES[section.kl.estimator] if in_loss else None,
        kl_coefficient=section.kl.coefficient if in_loss else 0.0,
        reward_kl=section.kl.coefficient if section.kl.placement == "reward" else 0.0,
        entropy_coefficient=section.entropy_coefficient,
        reduction=functools.partial(reductions.REDUCTIONS[section.reduction.kind], **extra),
        keeps_all_groups=section.group_filter == "all",
        quorum=section.quorum,
        adaptive=_adaptive(section),
    )


def _baseline(cell: BaselineCell, whitening: Whitening) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A baseline of one group is called for every group; one of the batch is called once.

    Without signal in the task reward there may still be a KL in the reward that tells answers apart. Where a
    deviation divides, that would be blown up, so such groups get 0; where nothing does, it has its right size, and
    leaving it out would bias the penalty by just the groups that are solved.
    """
    function = cell.bind()
    divided = not cell.shifts or whitening.over == "sequences"
    if cell.scope == "batch":
        return lambda rewards, groups, scored, _signal: function(rewards, groups, scored)

    def per_group(rewards: Tensor, groups: Tensor, scored: Tensor, signal: Tensor) -> Tensor:
        found = torch.zeros_like(rewards)
        for group in torch.unique(groups):
            mine = groups == group
            if bool(signal[mine].any()) or not divided:
                found[mine] = function(rewards[mine], scored[mine])
        return found

    return per_group


def _values(section: AlgorithmSection) -> ValueUse | None:
    cell, credit = section.value, section.credit
    if isinstance(cell, NoValue) or not isinstance(credit, ValueCredit):
        return None
    return ValueUse(
        credit=credit.bind(),
        loss=functools.partial(values.value_loss, clip=cell.clip),
        coefficient=cell.coefficient if isinstance(cell, ValueHead) else 1.0,
        bootstrap_truncated=credit.bootstrap_truncated,
        warmup_steps=cell.warmup_steps,
    )


def _adaptive(section: AlgorithmSection) -> dict[str, Adaptive]:
    found = {}
    if not isinstance(section.kl.controller, Fixed):
        found[KL_COEFFICIENT] = Adaptive(section.kl.coefficient, "kl/reference", section.kl.controller.bind())
    objective = section.objective
    if isinstance(objective, PPOKL) and not isinstance(objective.controller, Fixed):
        found[OBJECTIVE_COEFFICIENT] = Adaptive(objective.coefficient, STEP_KL, objective.controller.bind())
    return found
