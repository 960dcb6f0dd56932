"""KL to the reference in the loss and in the reward, values of its estimators, and the entropy bonus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from benchmarks import exact_forms as forms
from benchmarks.exact_case import Case, Exact, nothing, plain
from benchmarks.exact_estimators import Estimator
from benchmarks.exact_worlds import MDP, ONE_TOKEN, SEQUENCES, World
from penstock.learner.algorithms import kl

BETA = 0.3
ENTROPY = 0.1


def penalty_alone(estimator: Estimator) -> Tensor:
    """What the penalty adds to the gradient, per unit of β: the estimator less the same without a KL."""
    without = replace(estimator, cells={**estimator.cells, "kl": {"coefficient": 0.0}}, penalty=None)
    return (estimator.gradient() - without.gradient()) / BETA


def whole(e: Estimator) -> Tensor:
    """−∇KL(π‖π_ref) of whole answers: what a penalty is meant to add."""
    return -forms.kl_of_answers(e.world, e.tables.now, e.tables.reference)


def at_prefixes(e: Estimator) -> Tensor:
    """−Σ d(h) ∇KL(π‖π_ref)(h), prefixes being those of the sampler."""
    return -forms.kl_of_tokens(e.world, e.tables.now, e.tables.reference, e.tables.sampler)


def reversed_at_prefixes(e: Estimator) -> Tensor:
    """−Σ d(h) ∇KL(π_ref‖π)(h)."""
    return -forms.kl_of_tokens(e.world, e.tables.now, e.tables.reference, e.tables.sampler, reverse=True)


def apart(e: Estimator, policy: Tensor) -> Tensor:
    """[N, W] log(policy/π_ref) of the tokens."""
    return (e.world.logp(policy) - e.world.logp(e.tables.reference)).where(e.world.mask, 0.0)


def scored(coefficients: Callable[[Tensor], Tensor]) -> Exact:
    """−E_μ[Σ_t c ∇log π_t], with c a function of log(π/π_ref) of the token."""

    def form(e: Estimator) -> Tensor:
        return -forms.over_tokens(e.world, e.tables.now, e.tables.sampler, coefficients(apart(e, e.tables.now)))

    return form


def of_sampler(e: Estimator) -> Tensor:
    """−E_π[log(μ/π_ref) ∇log π(y)]."""
    return -forms.per_answer(e.world, e.tables.now, e.tables.now, apart(e, e.tables.sampler).sum(-1))


def _in_loss(world: World, setting: str, kind: str, form: Exact, formula: str, why: str) -> Case:
    cells = plain(kl={"coefficient": BETA, "estimator": kind, "placement": "loss"})
    return Case(f"{kind} in the loss", Estimator(world, setting, cells), whole, why, form, formula, penalty_alone)


def _k1(logp: Tensor, logp_reference: Tensor, _sampler: Tensor) -> Tensor:
    return kl.k1(logp, logp_reference)


HALF_A_SQUARE, ONE_LESS = scored(lambda x: x), scored(lambda x: 1 - (-x).exp())
AS_SAMPLED = "Weighs tokens and prefixes as the sampler does, and has nothing that corrects for it."
IN_LOSS = [
    Case(
        "k1 in the loss",
        Estimator(
            SEQUENCES, "on", plain(kl={"coefficient": BETA, "estimator": "k2", "placement": "loss"}), penalty=_k1
        ),
        whole,
        "A score has the expectation 0: it does nothing but add noise. A run file that asks for it is refused.",
        nothing,
        "0",
        penalty_alone,
    ),
    _in_loss(ONE_TOKEN, "on", "k2", whole, "", "Half of the square has the right slope, though not the right value."),
    _in_loss(
        ONE_TOKEN,
        "on",
        "k3",
        reversed_at_prefixes,
        "−∇KL(π_ref‖π)",
        "The right value, but the slope of the KL the other way round.",
    ),
    _in_loss(ONE_TOKEN, "on", "unbiased", whole, "", "The slope of the ratio adds what k3 lacks."),
    _in_loss(
        SEQUENCES,
        "on",
        "k2",
        at_prefixes,
        "−Σ d(h) ∇KL(π‖π_ref)(h)",
        "Right at every prefix; that a choice leads to prefixes further from the reference is not seen.",
    ),
    _in_loss(
        SEQUENCES,
        "on",
        "k3",
        reversed_at_prefixes,
        "−Σ d(h) ∇KL(π_ref‖π)(h)",
        "The KL the other way round at every prefix, and prefixes held fixed.",
    ),
    _in_loss(
        SEQUENCES,
        "on",
        "unbiased",
        at_prefixes,
        "−Σ d(h) ∇KL(π‖π_ref)(h)",
        "As k2: right at every prefix, prefixes held fixed.",
    ),
    _in_loss(
        ONE_TOKEN, "stale", "k2", HALF_A_SQUARE, "−E_μ[log(π/π_ref) ∇log π]", "Weighs tokens as the sampler does."
    ),
    _in_loss(ONE_TOKEN, "stale", "k3", ONE_LESS, "−E_μ[(1 − π_ref/π) ∇log π]", "Weighs tokens as the sampler does."),
    _in_loss(ONE_TOKEN, "stale", "unbiased", whole, "", "The ratio corrects for the sampler."),
    _in_loss(SEQUENCES, "stale", "k2", HALF_A_SQUARE, "−E_μ[Σ log(π/π_ref) ∇log π]", AS_SAMPLED),
    _in_loss(SEQUENCES, "stale", "k3", ONE_LESS, "−E_μ[Σ (1 − π_ref/π) ∇log π]", AS_SAMPLED),
    _in_loss(
        SEQUENCES,
        "stale",
        "unbiased",
        at_prefixes,
        "−Σ d^μ(h) ∇KL(π‖π_ref)(h)",
        "Right at every prefix; how often a prefix is met is the sampler's.",
    ),
]
"""The gradient without the penalty is taken off."""


def _in_reward(world: World, setting: str, form: Exact, formula: str, why: str, **cells: Any) -> Case:
    taken_off = {"coefficient": BETA, "estimator": "k1", "placement": "reward"}
    estimator = Estimator(world, setting, plain(kl=taken_off, **cells))
    name = "k1 in the reward" + "".join(f", {cell['kind']}" for cell in cells.values())
    return Case(name, estimator, whole, why, form, formula, penalty_alone)


IN_REWARD = [
    _in_reward(SEQUENCES, "on", whole, "", "A part of the return like any other: prefixes and all."),
    _in_reward(
        MDP,
        "on",
        whole,
        "",
        "With credit per token too, and across an environment's tokens.",
        credit={"kind": "discounted_return", "gamma": 1.0},
    ),
    _in_reward(
        SEQUENCES,
        "stale",
        of_sampler,
        "−E_π[log(μ/π_ref) ∇log π(y)]",
        "The weights make answers π's, but what is taken off is still the sampler's log-ratio, not π's.",
        trust={"kind": "sequence_is", "max_weight": 1000.0},
    ),
]
"""The gradient without the penalty is taken off."""


def kl_at_prefixes(e: Estimator) -> Tensor:
    """[1] Σ d(h) KL(π‖π_ref)(h), prefixes being those of the sampler."""
    one, other = e.tables.now.log_softmax(-1), e.tables.reference.log_softmax(-1)
    per_token = (one.exp() * (one - other)).sum(-1)[e.world.rows].where(e.world.mask, 0.0)
    return (e.world.likelihood(e.tables.sampler) * per_token.sum(-1)).sum().reshape(1)


def _estimate(name: str, setting: str, form: Exact | None, why: str) -> Case:
    def found(e: Estimator) -> Tensor:
        logp, reference, sampler = (e.world.logp(x) for x in (e.tables.now, e.tables.reference, e.tables.sampler))
        per_token = (
            kl.ESTIMATORS[name](logp, reference) if name != "unbiased" else kl.unbiased(logp, reference, sampler)
        )
        return (e.world.likelihood(e.tables.sampler) * per_token.where(e.world.mask, 0.0).sum(-1)).sum().reshape(1)

    return Case(name, Estimator(SEQUENCES, setting, plain()), kl_at_prefixes, why, form, "", found)


ESTIMATES = [
    _estimate("k1", "on", kl_at_prefixes, "The definition."),
    _estimate("k2", "on", None, "A square is no divergence; close to one while policies are close."),
    _estimate("k3", "on", kl_at_prefixes, "What it adds to k1 has the expectation 0."),
    _estimate("k1", "stale", None, "Tokens come from another policy than the KL's first."),
    _estimate("k2", "stale", None, "Tokens come from another policy than the KL's first."),
    _estimate("k3", "stale", None, "Tokens come from another policy than the KL's first."),
    _estimate("unbiased", "stale", kl_at_prefixes, "The ratio corrects for the sampler."),
]
"""Values, not gradients: expected sum of an estimator over an answer's tokens, and the KL at the prefixes met."""


def bonus_alone(estimator: Estimator) -> Tensor:
    """What the entropy bonus adds to the gradient, per unit of its coefficient."""
    without = replace(estimator, cells={**estimator.cells, "entropy_coefficient": 0.0})
    return (estimator.gradient() - without.gradient()) / ENTROPY


def entropy_of_answers(e: Estimator) -> Tensor:
    """∇H of whole answers."""

    def entropy(table: Tensor) -> Tensor:
        surprise = -e.world.logp(table).where(e.world.mask, 0.0).sum(-1)
        return (e.world.likelihood(table) * surprise).sum()

    return forms.ascent(entropy, e.tables.now)


BONUS = [
    Case(
        "entropy bonus",
        Estimator(SEQUENCES, "on", plain(entropy_coefficient=ENTROPY)),
        entropy_of_answers,
        "The entropy at every prefix; that a choice leads to prefixes of other entropy is not seen.",
        lambda e: forms.entropy_of_tokens(e.world, e.tables.now, e.tables.sampler),
        "Σ d(h) ∇H(π)(h)",
        bonus_alone,
    )
]
