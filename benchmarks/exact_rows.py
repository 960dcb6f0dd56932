"""The rows of the table of algorithms as they are, on-policy and with an older sampler."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from benchmarks import exact_forms as forms
from benchmarks import exact_worlds as worlds
from benchmarks.exact_case import RETURN, Case, Exact, gradient_of_return
from benchmarks.exact_estimators import Estimator

EPS = 1e-4
"""Of the z-score."""
THIRD = gradient_of_return(1 / 3)
HALF = gradient_of_return(1 / 2)


def chance_of_signal(e: Estimator) -> float:
    """Probability that a group of two has signal, for one prompt."""
    p, rewards = e.world.likelihood(e.tables.sampler), e.world.returns
    return float((p.unsqueeze(0) * p.unsqueeze(1))[rewards.unsqueeze(0) != rewards.unsqueeze(1)].sum())


def zscore_of_two(scale: float, filtered: bool) -> Exact:
    """The z-score of two: ±1/√2 by who has more, so that what is climbed is the chance to win against oneself."""

    def form(e: Estimator) -> Tensor:
        def coefficient(mine: Tensor, other: Tensor) -> Tensor:
            return scale * (mine - other) / 2 / ((mine - other).abs() / math.sqrt(2) + EPS)

        found = forms.over_pairs(e.world, e.tables, coefficient)
        return found / chance_of_signal(e) if filtered else found

    return form


def _row(name: str, members: int = 2, groups: int = 1, world: worlds.World | None = None, **cells: object) -> Estimator:
    return Estimator(world or worlds.SEQUENCES, "on", {"name": name, **cells}, members, groups)


ROWS = [
    Case(
        "reinforce",
        _row("reinforce", 1, 2, worlds.TWO_PROMPTS),
        RETURN,
        "The baseline comes from other prompts.",
        RETURN,
    ),
    Case("rloo", _row("rloo"), RETURN, "The baseline comes from the other answer.", RETURN),
    Case(
        "dr_grpo",
        _row("dr_grpo", reduction={"budget": 3}),
        THIRD,
        "The group's mean contains the answer itself, which takes a part of its own reward away.",
        gradient_of_return(1 / 6),
        "(G−1)/G · ∇J",
    ),
    Case(
        "kimi",
        _row("kimi"),
        RETURN,
        "As dr_grpo; the squared log-ratio is 0 and so is its slope while π is π_prox.",
        HALF,
        "(G−1)/G · ∇J",
    ),
    Case(
        "grpo",
        _row("grpo"),
        THIRD,
        "Divided by its deviation, a group of two says who won and not by how much; groups without signal are "
        "replaced, which divides by the chance of signal.",
        zscore_of_two(1 / 3, filtered=True),
        "√½ E[sign(R − R') ∇log π(y)] / P(signal)",
    ),
    Case(
        "dapo",
        _row("dapo"),
        THIRD,
        "As grpo: with answers of equal length and one group, its reduction is the same.",
        zscore_of_two(1 / 3, filtered=True),
        "as grpo",
    ),
    Case(
        "cispo",
        _row("cispo"),
        THIRD,
        "As grpo: on-policy every weight is 1.",
        zscore_of_two(1 / 3, filtered=True),
        "as grpo",
    ),
    Case(
        "gspo",
        _row("gspo"),
        THIRD,
        "As grpo without replaced groups: at s = 1 the slope of the geometric mean is the mean of the slopes.",
        zscore_of_two(1 / 3, filtered=False),
        "√½ E[sign(R − R') ∇log π(y)]",
    ),
    Case(
        "reinforce_pp",
        _row("reinforce_pp", 2, 2, worlds.TWO_PROMPTS),
        HALF,
        "The group's mean contains the answer; the batch's deviation depends on the answer too.",
    ),
    Case(
        "decoupled_ppo",
        _row("decoupled_ppo", 2, 2, worlds.TWO_PROMPTS),
        HALF,
        "The batch's mean and deviation contain the answer itself; in a large batch only the scale is left.",
    ),
    Case(
        "ppo, without whitening",
        _row("ppo", whitening={"over": "none"}),
        THIRD,
        "GAE with exact values is unbiased at every λ, and r = 1 is not clipped.",
        THIRD,
    ),
    Case(
        "ppo",
        _row("ppo"),
        THIRD,
        "Whitening takes off a mean that contains the token itself and divides by a deviation; in a large batch, not in"
        " this one of two answers, only the scale is left.",
    ),
    Case(
        "ppo_kl, without whitening",
        _row("ppo_kl", whitening={"over": "none"}),
        THIRD,
        "The penalty's slope is 0 while π is π_prox.",
        THIRD,
    ),
    Case("ppo_kl", _row("ppo_kl"), THIRD, "As ppo."),
    Case(
        "a2c, without entropy",
        _row("a2c", entropy_coefficient=0.0),
        THIRD,
        "Returns less exact values.",
        THIRD,
    ),
    Case(
        "a2c",
        _row("a2c"),
        THIRD,
        "The bonus adds the slope of the entropy, which is what it is for.",
        lambda e: THIRD(e) + 0.01 / 3 * forms.entropy_of_tokens(e.world, e.tables.now, e.tables.now),
        "∇J + 0.01 ∇H at the sampled prefixes",
    ),
]
"""Every row with its own cells, on-policy."""

TOKEN_WEIGHTS = "Weights per token up to 2: prefixes and what follows are still the sampler's."
STALE_WHY = {
    "reinforce": TOKEN_WEIGHTS,
    "rloo": TOKEN_WEIGHTS,
    "dr_grpo": "The same, times (G−1)/G.",
    "kimi": "Nothing corrects for the sampler, as in the paper; times (G−1)/G.",
    "grpo": "The z-score as above, and weights per token up to 2.",
    "dapo": "As grpo.",
    "cispo": "As grpo, by its own weights up to 5.",
    "gspo": "The z-score as above, and the geometric mean for a weight.",
    "reinforce_pp": "Whitening as above, and weights per token up to 2.",
    "decoupled_ppo": "Whitening as above, and weights per token without a bound.",
    "ppo": "Whitening as above, and weights per token up to 2; GAE takes what follows as the sampler did it.",
    "ppo_kl": "As ppo.",
    "a2c": "Weights per token up to 2; the returns are the sampler's.",
}
STALE = [
    Case(case.name, replace(case.estimator, setting="stale"), case.target, STALE_WHY[case.name])
    for case in ROWS
    if case.name in STALE_WHY
]
"""The same rows with an older sampler, each with the correction that it comes with."""
