"""KL to the reference, in the loss and in the reward; values of its estimators; entropy; targets of a value model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from benchmarks import exact_forms as forms
from benchmarks import exact_worlds as worlds
from benchmarks.exact_case import Case, Exact, nothing, plain
from benchmarks.exact_estimators import Estimator, credit_from_values, values_of
from penstock.learner.algorithms import kl

BETA = 0.3
AT_PREFIXES = "−Σ d(h) ∇KL(π‖π_ref)(h)"


def _without(estimator: Estimator) -> Tensor:
    """The gradient that the penalty alone adds, per unit of β: the estimator less the one without a KL."""
    cells = {**estimator.cells, "kl": {"coefficient": 0.0}}
    plain_gradient = replace(estimator, cells=cells, penalty=None).gradient()
    return (estimator.gradient() - plain_gradient) / BETA


def _whole(e: Estimator) -> Tensor:
    """−∇KL(π‖π_ref) of whole answers: what a penalty is meant to add."""
    return -forms.kl_of_answers(e.world, e.tables.now, e.tables.reference)


def _at_prefixes(reverse: bool = False) -> Exact:
    def form(e: Estimator) -> Tensor:
        return -forms.kl_of_tokens(e.world, e.tables.now, e.tables.reference, e.tables.sampler, reverse)

    return form


def _apart(e: Estimator, over: Tensor) -> Tensor:
    """[N, W] log(over/π_ref) of the tokens."""
    world = e.world
    return (world.logp(over) - world.logp(e.tables.reference)).where(world.mask, 0.0)


def _scored(coefficients: Any) -> Exact:
    """−E_μ[c ∇log π], with c [N, W] a function of log(π/π_ref)."""

    def form(e: Estimator) -> Tensor:
        return -forms.over_tokens(e.world, e.tables.now, e.tables.sampler, coefficients(_apart(e, e.tables.now)))

    return form


def _case(world: worlds.World, setting: str, estimator: str, name: str, why: str, **more: Any) -> Case:
    cells = plain(kl={"coefficient": BETA, "estimator": estimator, "placement": "loss"})
    return Case(name, Estimator(world, setting, cells), _whole, why, found=_without, **more)


def _k1_in_loss(world: worlds.World) -> Estimator:
    """k1 as a loss, which a run file is refused for."""
    cells = plain(kl={"coefficient": BETA, "estimator": "k2", "placement": "loss"})
    return Estimator(world, "on", cells, penalty=lambda logp, logp_reference, _sampler: kl.k1(logp, logp_reference))


def penalties() -> list[Case]:
    """KL in the loss; the gradient without it is taken off."""
    one, many = worlds.one_token(), worlds.sequences()
    return [
        Case(
            "k1",
            _k1_in_loss(many),
            _whole,
            "A score has expectation 0; a run file that asks for it is refused.",
            nothing,
            "0",
            _without,
        ),
        _case(one, "on", "k2", "k2, one token", "Half of a square has the right slope.", form=_whole),
        _case(
            one,
            "on",
            "k3",
            "k3, one token",
            "Its slope is that of the KL the other way round.",
            form=_at_prefixes(reverse=True),
            formula="−∇KL(π_ref‖π)",
        ),
        _case(one, "on", "unbiased", "unbiased, one token", "The ratio's slope adds what k3 lacks.", form=_whole),
        _case(
            many,
            "on",
            "k2",
            "k2",
            "Right at every prefix; that choices lead to other prefixes is not seen.",
            form=_at_prefixes(),
            formula=AT_PREFIXES,
        ),
        _case(
            many,
            "on",
            "k3",
            "k3",
            "The KL the other way round, at every prefix.",
            form=_at_prefixes(reverse=True),
            formula="−Σ d(h) ∇KL(π_ref‖π)(h)",
        ),
        _case(
            many,
            "on",
            "unbiased",
            "unbiased",
            "As k2: right at every prefix.",
            form=_at_prefixes(),
            formula=AT_PREFIXES,
        ),
        _case(
            one,
            "stale",
            "k2",
            "k2, one token, stale",
            "Weighs tokens as the sampler does.",
            form=_scored(lambda x: x),
            formula="−E_μ[log(π/π_ref) ∇log π]",
        ),
        _case(
            one,
            "stale",
            "k3",
            "k3, one token, stale",
            "Weighs tokens as the sampler does.",
            form=_scored(lambda x: 1 - (-x).exp()),
            formula="−E_μ[(1 − π_ref/π) ∇log π]",
        ),
        _case(
            one, "stale", "unbiased", "unbiased, one token, stale", "The ratio corrects for the sampler.", form=_whole
        ),
        _case(
            many,
            "stale",
            "k2",
            "k2, stale",
            "Weighs tokens and prefixes as the sampler does.",
            form=_scored(lambda x: x),
            formula="−E_μ[Σ log(π/π_ref) ∇log π]",
        ),
        _case(
            many,
            "stale",
            "k3",
            "k3, stale",
            "Weighs tokens and prefixes as the sampler does.",
            form=_scored(lambda x: 1 - (-x).exp()),
            formula="−E_μ[Σ (1 − π_ref/π) ∇log π]",
        ),
        _case(
            many,
            "stale",
            "unbiased",
            "unbiased, stale",
            "Right at every prefix; prefixes are the sampler's.",
            form=_at_prefixes(),
            formula="−Σ d^μ(h) ∇KL(π‖π_ref)(h)",
        ),
    ]


def in_reward() -> list[Case]:
    """k1 in the reward; the gradient without it is taken off."""
    many, mdp = worlds.sequences(), worlds.mdp()
    weighted = {"kind": "sequence_is", "aggregate": "product", "beyond": "clip", "max_weight": 1000.0}

    def estimator(world: worlds.World, setting: str, **cells: Any) -> Estimator:
        taken_off = {"coefficient": BETA, "estimator": "k1", "placement": "reward"}
        return Estimator(world, setting, plain(kl=taken_off, **cells))

    def case(name: str, made: Estimator, why: str, form: Exact, formula: str = "") -> Case:
        return Case(name, made, _whole, why, form, formula, _without)

    def of_sampler(e: Estimator) -> Tensor:
        towards = _apart(e, e.tables.sampler).sum(-1)
        return -forms.per_answer(e.world, e.tables.now, e.tables.now, towards)

    to_go = {"kind": "discounted_return", "gamma": 1.0}
    return [
        case(
            "k1 in the reward", estimator(many, "on"), "A part of the return like any other, prefixes included.", _whole
        ),
        case("the same, return to go, MDP", estimator(mdp, "on", credit=to_go), "With credit per token too.", _whole),
        case(
            "k1 in the reward, stale, weighted by answer",
            estimator(many, "stale", trust=weighted),
            "What is taken off is the sampler's log-ratio, so it is the sampler's distance that is weighed.",
            of_sampler,
            "−E_π[log(μ/π_ref) ∇log π(y)]",
        ),
    ]


def estimates() -> list[Case]:
    """Values, not gradients: the expected sum of an estimator over an answer's tokens, and the KL that it estimates."""
    many = worlds.sequences()

    def truth(e: Estimator) -> Tensor:
        tables, world = e.tables, e.world
        one, other = tables.now.log_softmax(-1), tables.reference.log_softmax(-1)
        per_row = (one.exp() * (one - other)).sum(-1)[world.rows].where(world.mask, 0.0).sum(-1)
        return (world.likelihood(tables.sampler) * per_row).sum().reshape(1)

    def case(name: str, setting: str, function: Any, why: str, form: Exact | None = None, formula: str = "") -> Case:
        def found(e: Estimator) -> Tensor:
            world, tables = e.world, e.tables
            logps = (world.logp(x) for x in (tables.now, tables.reference, tables.sampler))
            summed = function(*logps).where(world.mask, 0.0).sum(-1)
            return (world.likelihood(tables.sampler) * summed).sum().reshape(1)

        return Case(name, Estimator(many, setting, plain()), truth, why, form, formula, found)

    def alone(function: Any) -> Any:
        return lambda logp, logp_reference, _sampler: function(logp, logp_reference)

    right = "The expectation is the KL at the prefixes met."
    return [
        case("k1", "on", alone(kl.k1), right, truth),
        case("k2", "on", alone(kl.k2), "A square is not a divergence, but close for small ones."),
        case("k3", "on", alone(kl.k3), right, truth),
        case("k1, stale", "stale", alone(kl.k1), "Tokens come from another policy than the KL's first."),
        case("k3, stale", "stale", alone(kl.k3), "Tokens come from another policy than the KL's first."),
        case("unbiased, stale", "stale", kl.unbiased, right, truth),
    ]


def bonus() -> list[Case]:
    """The entropy bonus alone."""

    def found(e: Estimator) -> Tensor:
        without = replace(e, cells={**e.cells, "entropy_coefficient": 0.0})
        return (e.gradient() - without.gradient()) / 0.1

    def whole(e: Estimator) -> Tensor:
        def entropy(table: Tensor) -> Tensor:
            surprise = -e.world.logp(table).where(e.world.mask, 0.0).sum(-1)
            return (e.world.likelihood(table) * surprise).sum()

        return forms.ascent(entropy, e.tables.now)

    def at_prefixes(e: Estimator) -> Tensor:
        return forms.entropy_of_tokens(e.world, e.tables.now, e.tables.sampler)

    made = plain(entropy_coefficient=0.1)
    return [
        Case(
            "entropy bonus",
            Estimator(worlds.sequences(), "on", made),
            whole,
            "The entropy at every prefix; that choices lead to prefixes of other entropy is not seen.",
            at_prefixes,
            "Σ d(h) ∇H(π)(h)",
            found,
        )
    ]


def targets() -> list[Case]:
    """Values, not gradients: what a value model is to learn, given the history, and the value that it should learn."""
    mdp, sequences = worlds.mdp(), worlds.sequences()

    def found(e: Estimator) -> Tensor:
        _, returns = credit_from_values(e)
        return forms.conditional(e.world, e.tables.sampler, returns)

    def of_policy(e: Estimator) -> Tensor:
        return forms.values(e.world, e.tables.now)

    def case(
        name: str, world: worlds.World, setting: str, values: str, credit: dict[str, Any], why: str, *form: Any
    ) -> Case:
        cells = plain(baseline={"kind": "none"}, credit=credit, value={"kind": "own"})
        made = Estimator(world, setting, cells, 1, 1, values)
        return Case(name, made, of_policy, why, *(form or (None, "")), found)

    def gae(lam: float) -> dict[str, Any]:
        return {"kind": "gae", "lam": lam}

    def vtrace(cap: float) -> dict[str, Any]:
        return {"kind": "vtrace", "lam": 1.0, "max_rho": cap, "max_c": cap}

    return [
        case("GAE, λ = 1, wrong values", mdp, "on", "wrong", gae(1.0), "A + V is the return itself.", of_policy, ""),
        case("GAE, λ = 0.95, exact values", mdp, "on", "exact", gae(0.95), "What is right stays.", of_policy, ""),
        case("GAE, λ = 0.95, wrong values", mdp, "on", "wrong", gae(0.95), "A small part of the wrong values stays."),
        case(
            "GAE, λ = 1, stale",
            sequences,
            "stale",
            "wrong",
            gae(1.0),
            "The sampler's values are learnt.",
            lambda e: forms.values(e.world, e.tables.sampler),
            "V^μ",
        ),
        case(
            "V-trace, never reached, stale, wrong values",
            sequences,
            "stale",
            "wrong",
            vtrace(1000.0),
            "What follows is corrected in full.",
            of_policy,
            "",
        ),
        case(
            "the same, MDP", mdp, "stale", "wrong", vtrace(1000.0), "What follows is corrected in full.", of_policy, ""
        ),
        case(
            "V-trace, ρ̄ = c̄ = 1, stale, at its fixed point",
            mdp,
            "stale",
            "between",
            vtrace(1.0),
            "It learns the values of a policy between the sampler and π.",
            values_of,
            "V of π ∝ min(μ, π)",
        ),
    ]
