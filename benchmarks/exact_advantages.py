"""Baselines, credit, whitening and reductions one by one, on-policy; all else as in RLOO summed over tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks import exact_forms as forms
from benchmarks import exact_worlds as worlds
from benchmarks.exact_case import RETURN, Case, answer_weighted, gradient_of_return, pair_weighted, plain
from benchmarks.exact_estimators import Estimator, values_of
from benchmarks.exact_rows import HALF, THIRD, chance_of_signal, zscore_of_two


def _by_prompt_with_signal(e: Estimator) -> Tensor:
    world, p = e.world, e.world.likelihood(e.tables.now)
    pairs = (world.prompts.unsqueeze(0) == world.prompts.unsqueeze(1)) & (
        world.returns.unsqueeze(0) != world.returns.unsqueeze(1)
    )
    chance = float((p.unsqueeze(0) * p.unsqueeze(1))[pairs].sum()) / world.prompt_count
    return RETURN(e) / chance


def _whitened_pair(e: Estimator) -> Tensor:
    """Of two advantages ±d the mean is 0 and the deviation √2·d."""
    return forms.over_pairs(
        e.world, e.tables, lambda mine, other: (mine - other) / (math.sqrt(2) * (mine - other).abs() + 1e-8)
    )


def _td_lambda(e: Estimator, lam: float) -> Tensor:
    """The λ-return by its definition: a mixture of n-step returns, in a plain loop over an answer's choices."""
    world, values = e.world, values_of(e)
    amounts = torch.zeros_like(world.rewards)
    for n, mask in enumerate(world.mask):
        places = mask.nonzero().flatten().tolist()
        ends = [*places[1:], world.mask.shape[1]]
        for i, t in enumerate(places):
            total, fallen = 0.0, 0.0
            for k in range(i, len(places)):
                fallen += float(world.rewards[n, places[k] : ends[k]].sum())
                last = k + 1 == len(places)
                following = 0.0 if last else float(values[n, places[k + 1]])
                total += lam ** (k - i) * (1.0 if last else 1 - lam) * (fallen + following)
            amounts[n, t] = total
    return forms.over_tokens(world, e.tables.now, e.tables.now, amounts)


ZSCORE = {"kind": "group_zscore"}
VALUES = {"kind": "own"}
NONE = {"kind": "none"}


def _gae(lam: float) -> dict[str, object]:
    return plain(baseline=NONE, credit={"kind": "gae", "lam": lam}, value=VALUES)


def _whitened(batch: int) -> Estimator:
    return Estimator(worlds.ONE_TOKEN, "on", plain(baseline=NONE, whitening={"over": "sequences"}), 1, batch)


ADVANTAGES = [
    Case(
        "no baseline",
        Estimator(worlds.SEQUENCES, "on", plain(baseline=NONE), 1),
        RETURN,
        "The score-function estimator.",
        RETURN,
    ),
    Case(
        "leave one out",
        Estimator(worlds.MDP, "on", plain()),
        RETURN,
        "Also with an environment's tokens between.",
        RETURN,
    ),
    Case(
        "mean of the other prompts",
        Estimator(worlds.TWO_PROMPTS, "on", plain(baseline={"kind": "others_mean"}), 1, 2),
        RETURN,
        "Prompts are drawn independently.",
        RETURN,
    ),
    Case(
        "group mean",
        Estimator(worlds.SEQUENCES, "on", plain(baseline={"kind": "group_mean"})),
        RETURN,
        "A part 1/G of the baseline is the answer's own reward.",
        HALF,
        "(G−1)/G · ∇J",
    ),
    Case(
        "group mean, G = 3",
        Estimator(worlds.ONE_TOKEN, "on", plain(baseline={"kind": "group_mean"}), 3),
        RETURN,
        "The larger the group, the smaller the part.",
        gradient_of_return(2 / 3),
        "(G−1)/G · ∇J",
    ),
    Case(
        "group z-score",
        Estimator(worlds.SEQUENCES, "on", plain(baseline=ZSCORE)),
        RETURN,
        "√½ is (G−1)/G, as of the mean, times √2 of the deviation of two, which also takes the size of the difference "
        "away: close and clear wins count the same.",
        zscore_of_two(1.0, filtered=False),
        "√½ · Σ p p' sign(R − R') ∇log p",
    ),
    Case(
        "group z-score",
        Estimator(worlds.TWO_PROMPTS, "on", plain(baseline=ZSCORE), 2, 1),
        RETURN,
        "Besides, prompts whose rewards differ little weigh as much as others.",
    ),
    Case(
        "leave one out, groups without signal replaced",
        Estimator(worlds.SEQUENCES, "on", plain(group_filter="signal")),
        RETURN,
        "Only longer: what is replaced had advantages of 0.",
        lambda e: RETURN(e) / chance_of_signal(e),
        "∇J / P(signal)",
    ),
    Case(
        "leave one out, groups without signal replaced",
        Estimator(worlds.TWO_PROMPTS, "on", plain(group_filter="signal"), 2, 1),
        RETURN,
        "Longer again, and no more: what prompts that often have signal gain in draws, they would have had in signal.",
        _by_prompt_with_signal,
        "Σ_x ∇J(x) / Σ_x P(signal|x)",
    ),
    Case(
        "whitened over sequences",
        Estimator(worlds.SEQUENCES, "on", plain(whitening={"over": "sequences"})),
        RETURN,
        "In a batch of two answers whitening is a z-score; in a large batch only the scale is left.",
        _whitened_pair,
        "as the z-score",
    ),
    Case(
        "whitened over sequences, batch of 2",
        _whitened(2),
        RETURN,
        "The batch's mean and deviation contain the answer itself.",
    ),
    Case(
        "whitened over sequences, batch of 4",
        _whitened(4),
        RETURN,
        "The larger the batch, the less of a direction is wrong: in the end only the scale is left.",
    ),
    Case(
        "return to go",
        Estimator(worlds.MDP, "on", plain(credit={"kind": "discounted_return", "gamma": 1.0})),
        RETURN,
        "What fell before a choice does not depend on it.",
        RETURN,
    ),
    Case(
        "return to go, γ = 0.9",
        Estimator(worlds.MDP, "on", plain(credit={"kind": "discounted_return", "gamma": 0.9})),
        RETURN,
        "Discounting lets early choices answer for less than they cause.",
        lambda e: forms.over_tokens(
            e.world, e.tables.now, e.tables.now, forms.action_values(e.world, e.tables.now, 0.9)
        ),
        "Σ d(h) π Q_γ ∇log π",
    ),
    Case(
        "GAE, λ = 0, exact values",
        Estimator(worlds.MDP, "on", _gae(0.0), 1),
        RETURN,
        "With V = V^π every λ will do.",
        RETURN,
    ),
    Case(
        "GAE, λ = 0.95, exact values",
        Estimator(worlds.MDP, "on", _gae(0.95), 1),
        RETURN,
        "With V = V^π every λ will do.",
        RETURN,
    ),
    Case(
        "GAE, λ = 1, wrong values",
        Estimator(worlds.MDP, "on", _gae(1.0), 1, values="wrong"),
        RETURN,
        "At λ = 1 the values are a baseline and nothing else.",
        RETURN,
    ),
    Case(
        "GAE, λ = 0.95, wrong values",
        Estimator(worlds.MDP, "on", _gae(0.95), 1, values="wrong"),
        RETURN,
        "Below 1 the values also stand for what follows, and here they are wrong.",
        lambda e: _td_lambda(e, 0.95),
        "Σ d(h) π E[λ-return | h, a] ∇log π",
    ),
    Case(
        "GAE, λ = 0, wrong values",
        Estimator(worlds.MDP, "on", _gae(0.0), 1, values="wrong"),
        RETURN,
        "At 0 nothing but the next value stands for what follows.",
        lambda e: _td_lambda(e, 0.0),
        "Σ d(h) π E[r + V' | h, a] ∇log π",
    ),
]
"""One cell differs from RLOO summed over tokens, on-policy."""


def _by_mean_length(e: Estimator) -> Tensor:
    return RETURN(e) / (e.world.likelihood(e.tables.now) * e.world.lengths).sum()


def _reduced(kind: str, **more: object) -> Estimator:
    return Estimator(worlds.VARIED, "on", plain(reduction={"kind": kind, **more}))


def _shared(e: Estimator, _apart: Tensor) -> Tensor:
    lengths = e.world.lengths.double()
    return (2 / (lengths.unsqueeze(1) + lengths.unsqueeze(0))).unsqueeze(-1)


PER_LENGTH = answer_weighted(lambda ratio: torch.ones_like(ratio[:, 0]) / worlds.VARIED.lengths)


REDUCTIONS = [
    Case(
        "sequence_sum",
        _reduced("sequence_sum"),
        RETURN,
        "A sum over tokens is the log-probability of the answer.",
        RETURN,
    ),
    Case(
        "fixed_length",
        _reduced("fixed_length", budget=3),
        THIRD,
        "The same, divided by a constant.",
        THIRD,
    ),
    Case(
        "sequence_mean",
        _reduced("sequence_mean"),
        _by_mean_length,
        "An answer's tokens are divided by their number: short answers push harder, to either side.",
        PER_LENGTH,
        "E[(R − J)/T · ∇log π(y)]",
    ),
    Case(
        "token_mean",
        _reduced("token_mean"),
        _by_mean_length,
        "The divisor is the batch's, so it depends on the answer; less so the larger the batch.",
        pair_weighted(_shared, 1.0),
        "E[2 (R − R')/(T + T') · ∇log π(y)]",
    ),
    Case(
        "group_token_mean",
        _reduced("group_token_mean"),
        _by_mean_length,
        "The same with the group for the batch: it does not fade with more groups.",
        pair_weighted(_shared, 1.0),
        "E[2 (R − R')/(T + T') · ∇log π(y)]",
    ),
]
"""Answers of 1 to 3 tokens, RLOO, on-policy; a mean over tokens should be ∇J by a length, here the mean one."""
