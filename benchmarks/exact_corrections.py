"""Corrections when another policy sampled the tokens: one weight per token, one per answer, and rejections.

π_prox is π, as before the first update of a step; a bound that nothing reaches is as good as none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks import exact_worlds as worlds
from benchmarks.exact_case import RETURN, Case, answer_weighted, pair_weighted, plain, ratios, token_weighted
from benchmarks.exact_estimators import Estimator

LARGE = 1000.0
"""A bound that nothing reaches here."""
ONE_STEP = "Σ d^μ(h) π (Q^μ − J^μ) ∇log π"
TOKEN_LEVEL = token_weighted(lambda ratio: ratio)


def _stale(world: worlds.World | None = None, **cells: Any) -> Estimator:
    return Estimator(world or worlds.SEQUENCES, "stale", plain(**cells))


def _product(ratio: Tensor) -> Tensor:
    return ratio.prod(-1)


def geometric_mean(ratio: Tensor) -> Tensor:
    """Geometric, over the three tokens of an answer."""
    return ratio.prod(-1) ** (1 / 3)


def _bounded(ratio: Tensor, low: float, high: float) -> Tensor:
    return ratio.where((ratio >= low) & (ratio <= high), 0.0)


def _divergence(e: Estimator) -> Tensor:
    """[N, 1, 1] mean over the answer's tokens of log(μ/π)."""
    return (-ratios(e).log().sum(-1) / e.world.lengths).reshape(-1, 1, 1)


TIS = {"kind": "truncated_is", "max_weight": LARGE}
MASKED = {"kind": "masked_is", "min_weight": 0.8, "max_weight": 1.25}


TOKENS = [
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
        _stale(trust=TIS),
        RETURN,
        "Right for one token at a time: prefixes and what follows are still the sampler's.",
        TOKEN_LEVEL,
        ONE_STEP,
    ),
    Case(
        "truncated_is, cap never reached",
        _stale(worlds.ONE_TOKEN, trust=TIS),
        RETURN,
        "Without prefix and sequel nothing is left uncorrected.",
        RETURN,
    ),
    Case(
        "truncated_is, cap never reached",
        _stale(worlds.MDP, trust=TIS),
        RETURN,
        "The same; here prefixes matter less, since states forget them.",
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
        _stale(trust=MASKED),
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
        _stale(reject={"kind": "second_moment", "max_moment": 0.04}, trust=TIS),
        RETURN,
        "The same with the tokens that remain reweighted.",
    ),
]
"""One weight per token; μ is not π, and π_prox is π."""


def _by_answer(
    aggregate: str, beyond: str = "clip", cap: float = LARGE, world: worlds.World | None = None
) -> Estimator:
    trust = {"kind": "sequence_is", "aggregate": aggregate, "beyond": beyond, "max_weight": cap}
    return _stale(world, trust=trust)


ANSWERS = [
    Case(
        "product, bound never reached",
        _by_answer("product"),
        RETURN,
        "The importance weight of the whole answer; the baseline, which is the sampler's, stays neutral.",
        RETURN,
    ),
    Case("product, bound never reached", _by_answer("product", world=worlds.VARIED), RETURN, "At any length.", RETURN),
    Case(
        "product, bound never reached",
        _by_answer("product", world=worlds.MDP),
        RETURN,
        "The environment's tokens cancel.",
        RETURN,
    ),
    Case(
        "product, clip at 1.5",
        _by_answer("product", "clip", 1.5),
        RETURN,
        "Answers that π prefers most are held down.",
        answer_weighted(lambda ratio: _product(ratio).clamp(max=1.5)),
        "E_μ[min(w, 1.5) (R − J^μ) ∇log π(y)]",
    ),
    Case(
        "product, mask above 1.5",
        _by_answer("product", "mask", 1.5),
        RETURN,
        "Answers that π prefers most are missing.",
        answer_weighted(lambda ratio: _bounded(_product(ratio), 0.0, 1.5)),
        "E_μ[w 1(w ≤ 1.5) (R − J^μ) ∇log π(y)]",
    ),
    Case(
        "geometric mean, bound never reached",
        _by_answer("geometric_mean"),
        RETURN,
        "The third root of the right weight: closer to 1, so closer to no correction.",
        answer_weighted(geometric_mean),
        "E_μ[w^(1/T) (R − J^μ) ∇log π(y)]",
    ),
    Case(
        "geometric mean, mask above 1.1",
        _by_answer("geometric_mean", "mask", 1.1),
        RETURN,
        "Besides, answers are missing.",
        answer_weighted(lambda ratio: _bounded(geometric_mean(ratio), 0.0, 1.1)),
        "E_μ[w^(1/T) 1(w^(1/T) ≤ 1.1) (R − J^μ) ∇log π(y)]",
    ),
]
"""One weight per answer."""
