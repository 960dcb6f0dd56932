"""Corrections when another policy sampled the tokens, and objectives when π has left π_prox."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks import exact_forms as forms
from benchmarks import exact_worlds as worlds
from benchmarks.exact_case import (
    RETURN,
    Case,
    answer_weighted,
    centred,
    gradient_of_return,
    pair_weighted,
    plain,
    ratios,
    token_weighted,
)
from benchmarks.exact_estimators import Estimator

THIRD = gradient_of_return(1 / 3)
LARGE = 1000.0
"""A bound that nothing reaches here."""
ONE_STEP = "Σ d^μ(h) π (Q^μ − J^μ) ∇log π"
TOKEN_LEVEL = token_weighted(lambda ratio: ratio)


def _stale(world: worlds.World | None = None, **cells: Any) -> Estimator:
    return Estimator(world or worlds.sequences(), "stale", plain(**cells))


def _product(ratio: Tensor) -> Tensor:
    return ratio.prod(-1)


def _mean(ratio: Tensor) -> Tensor:
    """Geometric, over the three tokens of an answer."""
    return ratio.prod(-1) ** (1 / 3)


def _bounded(ratio: Tensor, low: float, high: float) -> Tensor:
    return ratio.where((ratio >= low) & (ratio <= high), 0.0)


def tokens() -> list[Case]:
    """One weight per token; μ is not π, and π_prox is π."""
    tis = {"kind": "truncated_is", "max_weight": LARGE}
    masked = {"kind": "masked_is", "min_weight": 0.8, "max_weight": 1.25}
    return [
        Case(
            "none",
            _stale(),
            RETURN,
            "The gradient of what the sampler does, where π's score meets the sampler's frequencies.",
            token_weighted(torch.ones_like),
            "E_μ[(R − J^μ) ∇log π]",
        ),
        Case(
            "truncated_is, cap never reached",
            _stale(trust=tis),
            RETURN,
            "Right for one token at a time: prefixes and what follows are still the sampler's.",
            TOKEN_LEVEL,
            ONE_STEP,
        ),
        Case(
            "the same, answers of one token",
            _stale(worlds.one_token(), trust=tis),
            RETURN,
            "Without prefix and sequel nothing is left uncorrected.",
            RETURN,
        ),
        Case(
            "the same, MDP",
            _stale(worlds.mdp(), trust=tis),
            RETURN,
            "As for sequences.",
            TOKEN_LEVEL,
            ONE_STEP,
        ),
        Case(
            "truncated_is, cap 1.25",
            _stale(trust={"kind": "truncated_is", "max_weight": 1.25}),
            RETURN,
            "What π prefers more than the sampler did is cut: on top, pulled towards the sampler.",
            token_weighted(lambda ratio: ratio.clamp(max=1.25)),
            "the same with min(π/μ, 1.25)",
        ),
        Case(
            "masked_is, 0.8 to 1.25",
            _stale(trust=masked),
            RETURN,
            "Tokens beyond either bound are missing.",
            token_weighted(lambda ratio: _bounded(ratio, 0.8, 1.25)),
            "the same without tokens beyond",
        ),
        Case(
            "decoupled, no bound",
            _stale(trust={"kind": "decoupled", "max_weight": None}),
            RETURN,
            "Before the first update it is the token-level weight.",
            TOKEN_LEVEL,
            ONE_STEP,
        ),
        Case(
            "decoupled, bound 1.25",
            _stale(trust={"kind": "decoupled", "max_weight": 1.25}),
            RETURN,
            "Tokens above the bound are missing.",
            token_weighted(lambda ratio: _bounded(ratio, 0.0, 1.25)),
            "the same without tokens above",
        ),
        Case(
            "cispo, cap never reached",
            _stale(objective={"kind": "cispo", "max_weight": LARGE}),
            RETURN,
            "As truncated_is: the weight is a constant to the gradient.",
            TOKEN_LEVEL,
            ONE_STEP,
        ),
        Case(
            "cispo, cap 1.25",
            _stale(objective={"kind": "cispo", "max_weight": 1.25}),
            RETURN,
            "As truncated_is with that cap.",
            token_weighted(lambda ratio: ratio.clamp(max=1.25)),
            "the same with min(π/μ, 1.25)",
        ),
        Case(
            "off_policy_sequence, δ 0.1",
            _stale(reject={"kind": "off_policy_sequence", "max_divergence": 0.1}),
            RETURN,
            "Answers that are worse than the other one and that the sampler gave more often are missing, and nothing "
            "is reweighted.",
            pair_weighted(lambda e, apart: (apart >= 0) | (_divergence(e) <= 0.1), 1.0),
            "E_μ over pairs, without them",
        ),
        Case(
            "second_moment, τ 0.04",
            _stale(reject={"kind": "second_moment", "max_moment": 0.04}),
            RETURN,
            "The tokens furthest from the sampler are missing, and nothing is reweighted; which they are depends on "
            "the whole batch.",
        ),
        Case(
            "second_moment with token weights",
            _stale(reject={"kind": "second_moment", "max_moment": 0.04}, trust=tis),
            RETURN,
            "The same with the tokens that remain reweighted.",
        ),
    ]


def _divergence(e: Estimator) -> Tensor:
    """[N, 1, 1] mean over the answer's tokens of log(μ/π)."""
    return (-ratios(e).log().sum(-1) / e.world.lengths).reshape(-1, 1, 1)


def answers() -> list[Case]:
    """One weight per answer."""

    def sequence(
        aggregate: str, beyond: str = "clip", cap: float = LARGE, world: worlds.World | None = None
    ) -> Estimator:
        trust = {"kind": "sequence_is", "aggregate": aggregate, "beyond": beyond, "max_weight": cap}
        return _stale(world, trust=trust)

    return [
        Case(
            "product, bound never reached",
            sequence("product"),
            RETURN,
            "The importance weight of the whole answer; the baseline, which is the sampler's, stays neutral.",
            RETURN,
        ),
        Case("the same, lengths 1 to 3", sequence("product", world=worlds.varied()), RETURN, "At any length.", RETURN),
        Case(
            "the same, MDP", sequence("product", world=worlds.mdp()), RETURN, "The environment's tokens cancel.", RETURN
        ),
        Case(
            "product, clip at 1.5",
            sequence("product", "clip", 1.5),
            RETURN,
            "Answers that π prefers most are held down.",
            answer_weighted(lambda ratio: _product(ratio).clamp(max=1.5)),
            "E_μ[min(w, 1.5) (R − J^μ) ∇log π(y)]",
        ),
        Case(
            "product, mask above 1.5",
            sequence("product", "mask", 1.5),
            RETURN,
            "Answers that π prefers most are missing.",
            answer_weighted(lambda ratio: _bounded(_product(ratio), 0.0, 1.5)),
            "E_μ[w 1(w ≤ 1.5) (R − J^μ) ∇log π(y)]",
        ),
        Case(
            "geometric mean, bound never reached",
            sequence("geometric_mean"),
            RETURN,
            "The third root of the right weight: closer to 1, so closer to no correction.",
            answer_weighted(_mean),
            "E_μ[w^(1/T) (R − J^μ) ∇log π(y)]",
        ),
        Case(
            "geometric mean, mask above 1.1",
            sequence("geometric_mean", "mask", 1.1),
            RETURN,
            "Besides, answers are missing.",
            answer_weighted(lambda ratio: _bounded(_mean(ratio), 0.0, 1.1)),
            "E_μ[w^(1/T) 1(w^(1/T) ≤ 1.1) (R − J^μ) ∇log π(y)]",
        ),
    ]


def traces() -> list[Case]:
    """V-trace: values of π, tokens of μ; no weights besides."""
    sequences, mdp = worlds.sequences(), worlds.mdp()

    def vtrace(world: worlds.World, cap: float, values: str = "exact", setting: str = "stale") -> Estimator:
        credit = {"kind": "vtrace", "lam": 1.0, "max_rho": cap, "max_c": cap}
        cells = plain(baseline={"kind": "none"}, credit=credit, value={"kind": "own"})
        return Estimator(world, setting, cells, 1, 1, values)

    def visited(e: Estimator, cap: float) -> Tensor:
        """Q and V of the policy between, at the prefixes of the sampler."""
        table = forms.between(e.tables, cap)
        better = forms.action_values(e.world, table) - forms.values(e.world, table)
        return forms.over_tokens(e.world, e.tables.now, e.tables.sampler, ratios(e).clamp(max=cap) * better)

    right = "Σ d^μ(h) π Q^π ∇log π"
    return [
        Case("on-policy, ρ̄ = c̄ = 1", vtrace(mdp, 1.0, setting="on"), RETURN, "It is then GAE at λ = 1.", RETURN),
        Case(
            "ρ̄, c̄ never reached",
            vtrace(sequences, LARGE),
            RETURN,
            "What follows a choice is corrected in full; how often a prefix is met is still the sampler's.",
            lambda e: visited(e, LARGE),
            right,
        ),
        Case("the same, MDP", vtrace(mdp, LARGE), RETURN, "As for sequences.", lambda e: visited(e, LARGE), right),
        Case(
            "the same, wrong values",
            vtrace(mdp, LARGE, "wrong"),
            RETURN,
            "Values are but a baseline then.",
            lambda e: visited(e, LARGE),
            right,
        ),
        Case(
            "ρ̄ = c̄ = 1, values that V-trace learns",
            vtrace(sequences, 1.0, "between"),
            RETURN,
            "The advantages are those of a policy between sampler and π, and rare choices count less.",
            lambda e: visited(e, 1.0),
            "Σ d^μ(h) min(μ, π) (Q − V) ∇log π, of π_ρ̄",
        ),
        Case(
            "ρ̄ = c̄ = 1, exact values of π",
            vtrace(sequences, 1.0),
            RETURN,
            "With values of another policy than its fixed point, what follows is mixed as well.",
        ),
    ]


def moved() -> list[Case]:
    """π has left π_prox by an update; π_prox is the sampler, except where it says so."""
    sequences = worlds.sequences()

    def clip(low: float = 0.2, high: float = 0.2, dual: float | None = None) -> dict[str, Any]:
        return {"kind": "ppo_clip", "clip_low": low, "clip_high": high, "dual_clip": dual}

    def case(name: str, objective: dict[str, Any], why: str, setting: str = "updated", **more: Any) -> Case:
        cells = {key: more.pop(key) for key in ("trust", "baseline", "reduction") if key in more}
        estimator = Estimator(sequences, setting, plain(objective=objective, **cells))
        return Case(name, estimator, more.pop("target", RETURN), why, **more)

    def clipped(low: float, high: float, dual: float = LARGE) -> Any:
        def keep(e: Estimator, apart: Tensor) -> Tensor:
            ratio = ratios(e).unsqueeze(1)
            inside = ((apart > 0) & (ratio <= 1 + high)) | ((apart < 0) & (ratio >= 1 - low) & (ratio <= dual))
            return inside * ratio

        return pair_weighted(keep, 1.0)

    def penalised(e: Estimator) -> Tensor:
        tables = e.tables
        apart = forms.kl_of_tokens(e.world, tables.now, tables.prox, tables.prox, reverse=True)
        return TOKEN_LEVEL(e) - 0.5 * apart

    def kimi(e: Estimator) -> Tensor:
        moved_by = ratios(e).log().sum(-1)
        return forms.per_answer(e.world, e.tables.now, e.tables.sampler, centred(e) / 2 - 0.1 * moved_by)

    geometric = {"reduction": {"kind": "sequence_mean"}, "target": THIRD}
    return [
        case(
            "policy_gradient",
            {"kind": "policy_gradient"},
            "Nothing corrects for the update: as no correction at all.",
            form=token_weighted(torch.ones_like),
            formula="E_μ[(R − J^μ) ∇log π]",
        ),
        case(
            "ppo_clip, bounds never reached",
            clip(1.0, 10.0),
            "The ratio is a token-level weight.",
            form=TOKEN_LEVEL,
            formula=ONE_STEP,
        ),
        case(
            "ppo_clip, 0.2",
            clip(),
            "Steps that went far enough in their direction add nothing.",
            form=clipped(0.2, 0.2),
            formula="the same without clipped pairs",
        ),
        case(
            "ppo_clip, 0.2 and 0.28",
            clip(0.2, 0.28),
            "A little more is left above.",
            form=clipped(0.2, 0.28),
            formula="the same without clipped pairs",
        ),
        case(
            "ppo_clip, 0.2, dual clip 1.1",
            clip(0.2, 0.2, 1.1),
            "Bad choices that became likelier add nothing beyond the cap, where they need it most.",
            form=clipped(0.2, 0.2, 1.1),
            formula="the same without clipped pairs",
        ),
        case(
            "ppo_kl, β 0.5",
            {"kind": "ppo_kl", "coefficient": 0.5, "controller": {"kind": "fixed"}},
            "The penalty pulls back to π_prox, as it should.",
            form=penalised,
            formula=f"{ONE_STEP} − β ∇KL(π_prox‖π)",
        ),
        case(
            "gspo, bounds never reached",
            {"kind": "gspo", "clip_low": 1.0, "clip_high": 10.0},
            "One root of the answer's weight for all of its tokens.",
            form=answer_weighted(lambda ratio: _mean(ratio) / 3),
            formula="E_μ[w^(1/T) (R − J^μ) ∇log π(y)]/T",
            **geometric,
        ),
        case(
            "gspo, 0.1",
            {"kind": "gspo", "clip_low": 0.1, "clip_high": 0.1},
            "Answers that went far enough are missing whole.",
            form=pair_weighted(_gspo_kept, 1 / 3),
            formula="the same without clipped pairs",
            **geometric,
        ),
        case(
            "kimi, τ 0.1",
            {"kind": "mirror_descent", "tau": 0.1},
            "Uncorrected, with the factor (G−1)/G of the group mean, and pulled back to π_prox.",
            baseline={"kind": "group_mean"},
            form=kimi,
            formula="(G−1)/G · E_μ[(R − J^μ) ∇log π(y)] − τ E_μ[log(π/π_prox) ∇log π(y)]",
        ),
        case(
            "decoupled + ppo_clip never reached, π ≠ π_prox ≠ μ",
            clip(1.0, 10.0),
            "Both ratios multiply to π/μ per token.",
            "apart",
            trust={"kind": "decoupled", "max_weight": None},
            form=TOKEN_LEVEL,
            formula=ONE_STEP,
        ),
        case(
            "decoupled + ppo_clip 0.2, π ≠ π_prox ≠ μ",
            clip(),
            "Clipping acts on what this step changed, not on the age of the sampler.",
            "apart",
            trust={"kind": "decoupled", "max_weight": None},
            form=_decoupled_clipped(0.2),
            formula="the same without clipped pairs",
        ),
        case(
            "cispo, cap 1.25, π ≠ π_prox ≠ μ",
            {"kind": "cispo", "max_weight": 1.25},
            "Its ratio is to the sampler whatever π_prox is.",
            "apart",
            form=token_weighted(lambda ratio: ratio.clamp(max=1.25)),
            formula="Σ d^μ(h) μ min(π/μ, 1.25) (Q^μ − J^μ) ∇log π",
        ),
    ]


def _gspo_kept(e: Estimator, apart: Tensor) -> Tensor:
    ratio = _mean(ratios(e)).reshape(-1, 1, 1)
    return (((apart > 0) & (ratio <= 1.1)) | ((apart < 0) & (ratio >= 0.9))) * ratio


def _decoupled_clipped(bound: float) -> Any:
    def keep(e: Estimator, apart: Tensor) -> Tensor:
        step = (e.world.logp(e.tables.now) - e.world.logp(e.tables.prox)).exp().unsqueeze(1)
        inside = ((apart > 0) & (step <= 1 + bound)) | ((apart < 0) & (step >= 1 - bound))
        return inside * ratios(e).unsqueeze(1)

    return pair_weighted(keep, 1.0)
