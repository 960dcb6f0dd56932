"""Credit from values off-policy (V-trace), and what a value model is given to learn."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks import exact_forms as forms
from benchmarks.exact_case import RETURN, Case, Exact, plain, ratios
from benchmarks.exact_estimators import Estimator, credit_from_values, values_of
from benchmarks.exact_worlds import MDP, SEQUENCES, World

LARGE = 1000.0
"""A bound that nothing reaches here."""


def _estimator(world: World, setting: str, values: str, credit: dict[str, Any]) -> Estimator:
    cells = plain(baseline={"kind": "none"}, credit=credit, value={"kind": "own"})
    return Estimator(world, setting, cells, 1, 1, values)


def _gae(lam: float) -> dict[str, Any]:
    return {"kind": "gae", "lam": lam}


def _vtrace(cap: float) -> dict[str, Any]:
    return {"kind": "vtrace", "lam": 1.0, "max_rho": cap, "max_c": cap}


def visited(cap: float) -> Exact:
    """Σ d^μ(h) μ min(ρ̄, π/μ) (Q − V) ∇log π, with Q and V of the policy ∝ min(ρ̄ μ, π)."""

    def form(e: Estimator) -> Tensor:
        table = forms.between(e.tables, cap)
        better = forms.action_values(e.world, table) - forms.values(e.world, table)
        return forms.over_tokens(e.world, e.tables.now, e.tables.sampler, ratios(e).clamp(max=cap) * better)

    return form


UNBOUND = visited(LARGE)
RIGHT = "Σ d^μ(h) π Q^π ∇log π"
TRACES = [
    Case(
        "V-trace, ρ̄ = c̄ = 1",
        _estimator(MDP, "on", "exact", _vtrace(1.0)),
        RETURN,
        "On-policy it is GAE at λ = 1.",
        RETURN,
    ),
    Case(
        "V-trace, bounds never reached",
        _estimator(SEQUENCES, "stale", "exact", _vtrace(LARGE)),
        RETURN,
        "What follows a choice is corrected in full; how often a prefix is met is still the sampler's.",
        UNBOUND,
        RIGHT,
    ),
    Case(
        "V-trace, bounds never reached",
        _estimator(MDP, "stale", "exact", _vtrace(LARGE)),
        RETURN,
        "The same.",
        UNBOUND,
        RIGHT,
    ),
    Case(
        "V-trace, bounds never reached, wrong values",
        _estimator(MDP, "stale", "wrong", _vtrace(LARGE)),
        RETURN,
        "The same: values are but a baseline then.",
        UNBOUND,
        RIGHT,
    ),
    Case(
        "V-trace, ρ̄ = c̄ = 1, the values that it learns",
        _estimator(SEQUENCES, "stale", "between", _vtrace(1.0)),
        RETURN,
        "Advantages are those of a policy between sampler and π, and what π prefers more than μ did counts as for μ.",
        visited(1.0),
        "Σ d^μ(h) min(μ, π) (Q − V) ∇log π, of π_ρ̄",
    ),
    Case(
        "V-trace, ρ̄ = c̄ = 1, exact values of π",
        _estimator(SEQUENCES, "stale", "exact", _vtrace(1.0)),
        RETURN,
        "With values other than those it learns, what follows is a mixture as well.",
    ),
]
"""Gradients; no weights besides those of the credit."""


def targets(e: Estimator) -> Tensor:
    """[N, W] E[what the value model is to predict | history]."""
    _, returns = credit_from_values(e)
    return forms.conditional(e.world, e.tables.sampler, returns)


def of_policy(e: Estimator) -> Tensor:
    """[N, W] V^π."""
    return forms.values(e.world, e.tables.now)


def of_sampler(e: Estimator) -> Tensor:
    """[N, W] V^μ."""
    return forms.values(e.world, e.tables.sampler)


def _target(name: str, made: Estimator, why: str, form: Exact | None = None, formula: str = "") -> Case:
    return Case(name, made, of_policy, why, form, formula, targets)


TARGETS = [
    _target("GAE, λ = 1", _estimator(MDP, "on", "wrong", _gae(1.0)), "A + V is the return itself.", of_policy),
    _target(
        "GAE, λ = 0.95, exact values",
        _estimator(MDP, "on", "exact", _gae(0.95)),
        "What is right stays right.",
        of_policy,
    ),
    _target(
        "GAE, λ = 0.95, wrong values",
        _estimator(MDP, "on", "wrong", _gae(0.95)),
        "A part of the wrong values stays, and fades as they are learnt.",
    ),
    _target(
        "GAE, λ = 1",
        _estimator(SEQUENCES, "stale", "wrong", _gae(1.0)),
        "The sampler's values are learnt.",
        of_sampler,
        "V^μ",
    ),
    _target(
        "V-trace, bounds never reached",
        _estimator(SEQUENCES, "stale", "wrong", _vtrace(LARGE)),
        "What follows is corrected in full, whatever the values were.",
        of_policy,
    ),
    _target(
        "V-trace, bounds never reached",
        _estimator(MDP, "stale", "wrong", _vtrace(LARGE)),
        "The same.",
        of_policy,
    ),
    _target(
        "V-trace, ρ̄ = c̄ = 1, at its fixed point",
        _estimator(MDP, "stale", "between", _vtrace(1.0)),
        "It stays at the values of a policy between sampler and π.",
        values_of,
        "V of the policy ∝ min(μ, π)",
    ),
]
"""Values, not gradients: E[target | history] for every history, and V^π."""
