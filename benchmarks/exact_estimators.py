"""The exact expectation of an estimator's gradient: every batch that can be drawn goes through the learner's own
functions, with the probability of drawing it.

The steps are those of `assemble` and of the train step; the functions are the ones that `bind` gives for a row of the
table. Enumeration is all that is added.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import exact_forms as forms
from benchmarks.exact_worlds import Policies, World, policies, waves
from penstock.learner.algorithms.advantages import has_signal, whiten
from penstock.learner.algorithms.bound import BoundAlgorithm, bind
from penstock.learner.algorithms.composition import compose
from penstock.learner.config import AlgorithmSection

NOTHING = math.nan
"""What stands beside tokens that do not count: it must have no effect."""


@dataclass(frozen=True)
class Estimator:
    """A row of the table, perhaps with other cells, in a world, with a sampler, and what a batch is made of."""

    world: World
    setting: str
    """Which policies there are, by `exact_worlds.policies`."""
    cells: Mapping[str, Any]
    """As in a run file."""
    members: int = 2
    groups: int = 1
    values: str = "exact"
    """What the value model says, by `values_of`."""
    penalty: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """In place of the row's own penalty."""

    @functools.cached_property
    def tables(self) -> Policies:
        return policies(self.world, self.setting)

    @functools.cached_property
    def section(self) -> AlgorithmSection:
        return AlgorithmSection.model_validate(dict(self.cells))

    @functools.cached_property
    def algorithm(self) -> BoundAlgorithm:
        bound = bind(self.section)
        return bound if self.penalty is None else replace(bound, penalty=self.penalty)

    def gradient(self) -> Tensor:
        """[rows, choices] minus the expected gradient of the loss with respect to π's table: what is climbed."""
        world, tables, algorithm = self.world, self.tables, self.algorithm
        batches = _batches(self)
        chosen, mask = batches.answers, world.mask[batches.answers]
        table = tables.now.detach().clone().requires_grad_(True)

        def column(values: Tensor) -> Tensor:
            return values[chosen].where(mask, NOTHING)

        made = compose(
            algorithm,
            world.logp(table)[chosen],
            column(world.logp(tables.prox)),
            column(world.logp(tables.sampler)),
            column(world.logp(tables.reference)),
            batches.advantages.where(mask, NOTHING),
            mask,
            batches.weights,
            world.entropy(table)[chosen],
            _bounds(self, batches.answers),
        )
        (gradient,) = torch.autograd.grad(-made.loss, table)
        return gradient


@dataclass(frozen=True)
class Draws:
    """Every batch: D of them, of B answers each."""

    answers: Tensor
    """[D, B]."""
    groups: Tensor
    """[B] which group of the batch an answer is in."""


@dataclass(frozen=True)
class Batches:
    """All batches end to end."""

    answers: Tensor
    """[D·B]."""
    advantages: Tensor
    """[D·B, W]."""
    weights: Tensor
    """[D·B] from the reduction over the batch, times the probability of the batch."""


def draws(world: World, members: int, groups: int) -> Draws:
    """All batches of so many groups, each of a prompt drawn anew and so many answers to it."""
    prompts = world.prompts.tolist()
    answers = range(len(prompts))
    group = [each for each in itertools.product(answers, repeat=members) if len({prompts[n] for n in each}) == 1]
    batch = [list(itertools.chain(*each)) for each in itertools.product(group, repeat=groups)]
    return Draws(torch.tensor(batch), torch.arange(groups).repeat_interleave(members))


_KNOWN: dict[tuple[object, ...], Any] = {}


def _known(estimator: Estimator, what: str, more: object, make: Callable[[], Any]) -> Any:
    """What many estimators share and what takes a call per batch: computed once per world and kind of batch."""
    key = (what, estimator.world.name, estimator.members, estimator.groups, repr(more))
    if key not in _KNOWN:
        _KNOWN[key] = make()
    return _KNOWN[key]


def _batches(estimator: Estimator) -> Batches:
    """Every batch with its probability; those that the group filter replaces by others are left out, which is drawing
    on the condition that all groups have signal."""
    world, algorithm = estimator.world, estimator.algorithm
    drawn = _known(estimator, "draws", "", lambda: draws(world, estimator.members, estimator.groups))
    likelihood = world.likelihood(estimator.tables.sampler)
    probability = likelihood[drawn.answers].prod(-1) * (1 / world.prompt_count) ** estimator.groups
    weights = _known(estimator, "weights", estimator.section.reduction, lambda: _weights(estimator, drawn))
    signal = _known(estimator, "signal", "", lambda: torch.stack([_signal(world, drawn, a) for a in drawn.answers]))
    if not algorithm.keeps_all_groups:
        probability = probability.where(signal.all(-1), 0.0)
    weights = weights * (probability / probability.sum()).unsqueeze(-1)
    return Batches(drawn.answers.flatten(), _advantages(estimator, drawn, signal).flatten(0, 1), weights.flatten())


def _weights(estimator: Estimator, drawn: Draws) -> Tensor:
    """[D, B] of the reduction."""
    reduce, lengths = estimator.algorithm.reduction, estimator.world.lengths
    return torch.stack([reduce(lengths[answers], drawn.groups) for answers in drawn.answers])


def _advantages(estimator: Estimator, drawn: Draws, signal: Tensor) -> Tensor:
    """[D, B, W]."""
    falling, section = _token_rewards(estimator), estimator.section
    if estimator.algorithm.value is not None:
        return _credit_from_values(estimator, falling, drawn)
    cells = (section.baseline, section.whitening, section.credit, falling.tolist())
    found: Tensor = _known(
        estimator, "advantages", cells, lambda: _credit_from_outcomes(estimator, falling, drawn, signal)
    )
    return found


def _token_rewards(estimator: Estimator) -> Tensor:
    """[N, W] rewards, less the KL where it is in the reward."""
    world, tables = estimator.world, estimator.tables
    apart = (world.logp(tables.sampler) - world.logp(tables.reference)).where(world.mask, 0.0)
    return world.rewards - estimator.algorithm.reward_kl * apart


def _signal(world: World, drawn: Draws, answers: Tensor) -> Tensor:
    """[B] whether the answer's group differs in task reward."""
    rewards, everyone = world.returns[answers], torch.ones(len(answers), dtype=torch.bool)
    groups = [drawn.groups == group for group in range(int(drawn.groups.max()) + 1)]
    return torch.tensor([has_signal(rewards[mine], everyone[mine]) for mine in groups])[drawn.groups]


def _credit_from_outcomes(estimator: Estimator, falling: Tensor, drawn: Draws, signal: Tensor) -> Tensor:
    """[D, B, W] advantages: baseline, whitening over sequences, credit, batch by batch as `assemble` does."""
    world, algorithm = estimator.world, estimator.algorithm
    assert algorithm.credit is not None
    credit = functools.cache(lambda n, advantage: algorithm.credit(falling[n], world.mask[n], advantage))  # type: ignore[misc]
    scored = torch.ones(len(drawn.groups), dtype=torch.bool)
    found = []
    for answers, with_signal in zip(drawn.answers, signal, strict=True):
        per_answer = algorithm.baseline(falling[answers].sum(-1), drawn.groups, scored, with_signal)
        if algorithm.whiten_sequences is not None:
            per_answer = algorithm.whiten_sequences(per_answer, scored)
        pairs = zip(answers.tolist(), per_answer.tolist(), strict=True)
        found.append(torch.stack([credit(n, advantage) for n, advantage in pairs]))
    return torch.stack(found)


def _credit_from_values(estimator: Estimator, falling: Tensor, drawn: Draws) -> Tensor:
    """[D, B, W] advantages from values, whitened over the tokens of a batch where the row says so."""
    eps = estimator.algorithm.whiten_tokens_eps
    found = credit_from_values(estimator, falling)[0][drawn.answers]
    if eps is None:
        return found
    whitened = torch.zeros_like(found)
    for place, mask in enumerate(estimator.world.mask[drawn.answers]):
        everyone = torch.ones(int(mask.sum()), dtype=torch.bool)
        whitened[place][mask] = whiten(found[place][mask], everyone, eps)
    return whitened


def credit_from_values(estimator: Estimator, falling: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[N, W] advantages and returns of every answer; none is bootstrapped past its end."""
    world, tables, value = estimator.world, estimator.tables, estimator.algorithm.value
    assert value is not None
    ended = torch.zeros(len(world.prompts), dtype=torch.float64)
    given = values_of(estimator), world.logp(tables.prox), world.logp(tables.sampler)
    values, prox, sampler = (each.where(world.mask, NOTHING) for each in given)
    return value.credit(world.rewards if falling is None else falling, values, ended, prox, sampler, world.mask)


def values_of(estimator: Estimator) -> Tensor:
    """[N, W] what the value model says: `exact` values of π_prox, those of the policy `between` μ and π_prox that
    V-trace has its fixed point at (with ρ̄ = 1), or `wrong` ones."""
    world, tables = estimator.world, estimator.tables
    if estimator.values == "between":
        return forms.values(world, forms.between(tables, 1.0))
    exact = forms.values(world, tables.prox)
    if estimator.values == "exact":
        return exact
    other = waves((int(world.histories.max()) + 1,), 0.7)[world.histories]
    return (exact + other).where(world.mask, 0.0)


def _bounds(estimator: Estimator, answers: Tensor) -> Any:
    """[D·B, 1] the rejection's bound, from the whole of every batch; infinity where it needs none."""
    world, tables, algorithm = estimator.world, estimator.tables, estimator.algorithm
    if algorithm.reject_bound is None:
        return math.inf
    apart = world.logp(tables.prox) - world.logp(tables.sampler)
    batches = answers.reshape(-1, estimator.members * estimator.groups)
    bounds = [algorithm.reject_bound(apart[batch][world.mask[batch]]) for batch in batches]
    return torch.tensor(bounds, dtype=torch.float64).repeat_interleave(batches.shape[1]).unsqueeze(-1)
