"""One line of the table of exact gradients, and how far an estimator's expectation is from what it should be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import exact_forms as forms
from benchmarks.exact_estimators import Estimator

TOLERANCE = 1e-9
"""Largest relative distance of what is called equal."""
PLAIN: Mapping[str, Any] = {
    "name": "rloo",
    "baseline": {"kind": "leave_one_out"},
    "objective": {"kind": "policy_gradient"},
    "trust": {"kind": "none"},
    "reduction": {"kind": "sequence_sum"},
    "group_filter": "all",
    "kl": {"coefficient": 0.0},
}
"""The plainest unbiased estimator; what a section asks about is the only cell that differs from it."""
Exact = Callable[[Estimator], Tensor]


@dataclass(frozen=True)
class Distance:
    """How an expectation lies to the gradient that it should be."""

    along: float
    """Length along that gradient, in units of its length: 1 when unbiased, 0.5 for half of it, negative against it."""
    cosine: float
    """0 where there is no length to speak of."""
    bias: float
    """Length of the difference, in the same units."""


@dataclass(frozen=True)
class Case:
    """An estimator, what it should be in expectation, and what it is."""

    name: str
    estimator: Estimator
    target: Exact
    """What it should be: an exact gradient, times a constant that the reduction is known for."""
    why: str
    """One sentence."""
    form: Exact | None = None
    """What it is exactly, written from theory; None where nobody knows a closed form."""
    formula: str = ""
    """The form in words; empty where there is none, or where it is the target."""
    found: Exact = Estimator.gradient
    """What is looked at; the gradient, but for the sections on values."""

    @functools.cached_property
    def expectation(self) -> Tensor:
        """What is looked at, computed once."""
        return self.found(self.estimator)

    @property
    def unbiased(self) -> bool:
        """Whether theory says that it is what it should be."""
        return self.form is self.target

    def distance(self) -> Distance:
        return distance(self.expectation, self.target(self.estimator))

    def mistake(self) -> float:
        """Distance from the closed form, relative to the target's length; 0 where there is none."""
        if self.form is None:
            return 0.0
        apart = self.expectation - self.form(self.estimator)
        return float(apart.norm() / self.target(self.estimator).norm())


def distance(found: Tensor, wanted: Tensor) -> Distance:
    """How `found` lies to `wanted`, which is not 0."""
    length = float(wanted.norm())
    inner = float((found * wanted).sum())
    norm = float(found.norm())
    return Distance(
        inner / length**2,
        inner / (norm * length) if norm > TOLERANCE * length else 0.0,
        float((found - wanted).norm()) / length,
    )


def gradient_of_return(scale: float = 1.0) -> Exact:
    """∇J, times a constant."""
    return lambda e: scale * forms.policy_gradient(e.world, e.tables.now)


RETURN = gradient_of_return()


def plain(**cells: Any) -> dict[str, Any]:
    """PLAIN with some cells replaced."""
    return {**PLAIN, **cells}


def ratios(estimator: Estimator) -> Tensor:
    """[N, W] π/μ, 1 where the policy did not choose."""
    world, tables = estimator.world, estimator.tables
    return (world.logp(tables.now) - world.logp(tables.sampler)).where(world.mask, 0.0).exp()


def centred(estimator: Estimator) -> Tensor:
    """[N] R(y) − E_μ[R]: what a baseline of the group leaves in expectation, for one prompt."""
    world = estimator.world
    return world.returns - forms.expected_return(world, estimator.tables.sampler)


def token_weighted(weigh: Callable[[Tensor], Tensor], scale: float = 1.0) -> Exact:
    """Σ_h d^μ(h) Σ_a μ(a|h) w (E_μ[R|h, a] − E_μ[R]) ∇log π(a|h) with w a function of the ratio π/μ of the token."""

    def form(e: Estimator) -> Tensor:
        amounts = forms.given_choice(e.world, e.tables.sampler) - forms.expected_return(e.world, e.tables.sampler)
        return scale * forms.over_tokens(e.world, e.tables.now, e.tables.sampler, weigh(ratios(e)) * amounts)

    return form


def answer_weighted(weigh: Callable[[Tensor], Tensor], scale: float = 1.0) -> Exact:
    """Σ_y μ(y) w (R(y) − E_μ[R]) ∇log π(y) with w a function of the ratios [N, W] of the answer's tokens."""
    return lambda e: scale * forms.per_answer(e.world, e.tables.now, e.tables.sampler, weigh(ratios(e)) * centred(e))


def pair_weighted(keep: Callable[[Estimator, Tensor], Tensor], scale: float = 0.5) -> Exact:
    """Σ μ(y) μ(y') (R(y) − R(y')) c ∇log π(y), with c [N, N, W] a function of the estimator and of A = R(y) − R(y')."""

    def form(e: Estimator) -> Tensor:
        return forms.over_pairs(e.world, e.tables, lambda mine, other: scale * (mine - other) * keep(e, mine - other))

    return form


def nothing(estimator: Estimator) -> Tensor:
    """A gradient of zero."""
    return torch.zeros(estimator.world.shape, dtype=torch.float64)
