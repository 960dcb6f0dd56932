"""The rows of the table of algorithms on-policy, as they are; and baselines, credit, whitening, reductions one by one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks import exact_forms as forms
from benchmarks import exact_worlds as worlds
from benchmarks.exact_case import RETURN, Case, Exact, answer_weighted, gradient_of_return, pair_weighted, plain
from benchmarks.exact_estimators import Estimator, values_of

EPS = 1e-4
"""Of the z-score."""
THIRD = gradient_of_return(1 / 3)
HALF = gradient_of_return(1 / 2)


def _signal(e: Estimator) -> float:
    """Probability that a group of two has signal, for one prompt."""
    p, rewards = e.world.likelihood(e.tables.sampler), e.world.returns
    return float((p.unsqueeze(0) * p.unsqueeze(1))[rewards.unsqueeze(0) != rewards.unsqueeze(1)].sum())


def _zscore(scale: float, filtered: bool) -> Exact:
    """The z-score of two: ±1/√2 by who has more, so that what is climbed is the chance to win against oneself."""

    def form(e: Estimator) -> Tensor:
        def coefficient(mine: Tensor, other: Tensor) -> Tensor:
            return scale * (mine - other) / 2 / ((mine - other).abs() / math.sqrt(2) + EPS)

        found = forms.over_pairs(e.world, e.tables, coefficient)
        return found / _signal(e) if filtered else found

    return form


def _row(name: str, members: int = 2, groups: int = 1, world: worlds.World | None = None, **cells: object) -> Estimator:
    return Estimator(world or worlds.sequences(), "on", {"name": name, **cells}, members, groups)


def rows() -> list[Case]:
    """Every row with its own cells, on-policy."""
    two = worlds.two_prompts()
    per_token = {"over": "none"}
    budget = {"budget": 3}
    return [
        Case("reinforce", _row("reinforce", 1, 2, two), RETURN, "The baseline comes from other prompts.", RETURN),
        Case("rloo", _row("rloo"), RETURN, "The baseline comes from the other answer.", RETURN),
        Case(
            "dr_grpo",
            _row("dr_grpo", reduction=budget),
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
            _zscore(1 / 3, filtered=True),
            "√½ ∇P(win)-like / P(signal)",
        ),
        Case(
            "dapo",
            _row("dapo"),
            THIRD,
            "As grpo: with answers of equal length and one group, its reduction is the same.",
            _zscore(1 / 3, filtered=True),
            "as grpo",
        ),
        Case(
            "cispo",
            _row("cispo"),
            THIRD,
            "As grpo: on-policy every weight is 1.",
            _zscore(1 / 3, filtered=True),
            "as grpo",
        ),
        Case(
            "gspo",
            _row("gspo"),
            THIRD,
            "As grpo without replaced groups: at s = 1 the slope of the geometric mean is the mean of the slopes.",
            _zscore(1 / 3, filtered=False),
            "as grpo · P(signal)",
        ),
        Case(
            "reinforce_pp",
            _row("reinforce_pp", 2, 2, two),
            HALF,
            "The group's mean contains the answer; the batch's deviation depends on the answer too.",
        ),
        Case(
            "decoupled_ppo",
            _row("decoupled_ppo", 2, 2, two),
            HALF,
            "The batch's mean and deviation contain the answer itself; both fade with the size of the batch.",
        ),
        Case(
            "ppo, without whitening",
            _row("ppo", whitening=per_token),
            THIRD,
            "GAE with exact values is unbiased at every λ, and r = 1 is not clipped.",
            THIRD,
        ),
        Case(
            "ppo",
            _row("ppo"),
            THIRD,
            "Whitening subtracts a mean that contains the token's own advantage and divides by a deviation.",
        ),
        Case(
            "ppo_kl, without whitening",
            _row("ppo_kl", whitening=per_token),
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


def advantages() -> list[Case]:
    """One cell differs from RLOO summed over tokens, on-policy."""
    sequences, mdp, two = worlds.sequences(), worlds.mdp(), worlds.two_prompts()

    zscore = {"kind": "group_zscore"}
    values = {"kind": "own"}
    none = {"kind": "none"}

    def gae(lam: float) -> dict[str, object]:
        return plain(baseline=none, credit={"kind": "gae", "lam": lam}, value=values)

    return [
        Case(
            "no baseline",
            Estimator(sequences, "on", plain(baseline=none), 1),
            RETURN,
            "The score-function estimator.",
            RETURN,
        ),
        Case(
            "leave one out", Estimator(mdp, "on", plain()), RETURN, "Also with an environment's tokens between.", RETURN
        ),
        Case(
            "mean of the other prompts",
            Estimator(two, "on", plain(baseline={"kind": "others_mean"}), 1, 2),
            RETURN,
            "Prompts are drawn independently.",
            RETURN,
        ),
        Case(
            "group mean",
            Estimator(sequences, "on", plain(baseline={"kind": "group_mean"})),
            RETURN,
            "A part 1/G of the baseline is the answer's own reward.",
            HALF,
            "(G−1)/G · ∇J",
        ),
        Case(
            "group mean, G = 3",
            Estimator(worlds.one_token(), "on", plain(baseline={"kind": "group_mean"}), 3),
            RETURN,
            "The larger the group, the smaller the part.",
            gradient_of_return(2 / 3),
            "(G−1)/G · ∇J",
        ),
        Case(
            "group z-score",
            Estimator(sequences, "on", plain(baseline=zscore)),
            RETURN,
            "The deviation takes the size of the difference away: close and clear wins count the same.",
            _zscore(1.0, filtered=False),
            "√½ · Σ p p' sign(R − R') ∇log p",
        ),
        Case(
            "group z-score, two prompts",
            Estimator(two, "on", plain(baseline=zscore), 2, 1),
            RETURN,
            "Besides, prompts whose rewards differ little weigh as much as others.",
        ),
        Case(
            "leave one out, groups without signal replaced",
            Estimator(sequences, "on", plain(group_filter="signal")),
            RETURN,
            "Only longer: what is replaced had advantages of 0.",
            lambda e: RETURN(e) / _signal(e),
            "∇J / P(signal)",
        ),
        Case(
            "the same, two prompts",
            Estimator(two, "on", plain(group_filter="signal"), 2, 1),
            RETURN,
            "Prompts with signal more often are drawn more often: another mix of prompts is optimised.",
            _by_prompt_with_signal,
            "Σ_x ∇J(x) / Σ_x P(signal|x)",
        ),
        Case(
            "whitened over sequences",
            Estimator(sequences, "on", plain(whitening={"over": "sequences"})),
            RETURN,
            "In a batch of two answers whitening is a z-score; in a large batch only the scale is left.",
            _whitened_pair,
            "as the z-score",
        ),
        Case(
            "return to go",
            Estimator(mdp, "on", plain(credit={"kind": "discounted_return", "gamma": 1.0})),
            RETURN,
            "What fell before a choice does not depend on it.",
            RETURN,
        ),
        Case(
            "return to go, γ = 0.9",
            Estimator(mdp, "on", plain(credit={"kind": "discounted_return", "gamma": 0.9})),
            RETURN,
            "Discounting lets early choices answer for less than they cause.",
            lambda e: forms.over_tokens(
                e.world, e.tables.now, e.tables.now, forms.action_values(e.world, e.tables.now, 0.9)
            ),
            "Σ d(h) π Q_γ ∇log π",
        ),
        Case(
            "GAE, λ = 0, exact values",
            Estimator(mdp, "on", gae(0.0), 1),
            RETURN,
            "With V = V^π every λ will do.",
            RETURN,
        ),
        Case(
            "GAE, λ = 0.95, exact values",
            Estimator(mdp, "on", gae(0.95), 1),
            RETURN,
            "With V = V^π every λ will do.",
            RETURN,
        ),
        Case(
            "GAE, λ = 1, wrong values",
            Estimator(mdp, "on", gae(1.0), 1, values="wrong"),
            RETURN,
            "At λ = 1 the values are a baseline and nothing else.",
            RETURN,
        ),
        Case(
            "GAE, λ = 0.95, wrong values",
            Estimator(mdp, "on", gae(0.95), 1, values="wrong"),
            RETURN,
            "Below 1 the values also stand for what follows, and here they are wrong.",
            lambda e: _td_lambda(e, 0.95),
            "Σ d(h) π E[λ-return | h, a] ∇log π",
        ),
        Case(
            "GAE, λ = 0, wrong values",
            Estimator(mdp, "on", gae(0.0), 1, values="wrong"),
            RETURN,
            "At 0 nothing but the next value stands for what follows.",
            lambda e: _td_lambda(e, 0.0),
            "Σ d(h) π E[r + V' | h, a] ∇log π",
        ),
    ]


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


def reductions() -> list[Case]:
    """Answers of 1 to 3 tokens, RLOO, on-policy; a mean over tokens should be ∇J by a length, here the mean one."""
    varied = worlds.varied()

    def mean_length(e: Estimator) -> Tensor:
        return RETURN(e) / (e.world.likelihood(e.tables.now) * e.world.lengths).sum()

    def reduced(kind: str, **more: object) -> Estimator:
        return Estimator(varied, "on", plain(reduction={"kind": kind, **more}))

    def shared(e: Estimator, _apart: Tensor) -> Tensor:
        lengths = e.world.lengths.double()
        return (2 / (lengths.unsqueeze(1) + lengths.unsqueeze(0))).unsqueeze(-1) * 1.0

    per_length = answer_weighted(lambda ratio: torch.ones_like(ratio[:, 0]) / varied.lengths)
    return [
        Case(
            "sequence_sum",
            reduced("sequence_sum"),
            RETURN,
            "A sum over tokens is the log-probability of the answer.",
            RETURN,
        ),
        Case(
            "fixed_length",
            reduced("fixed_length", budget=3),
            THIRD,
            "The same, divided by a constant.",
            THIRD,
        ),
        Case(
            "sequence_mean",
            reduced("sequence_mean"),
            mean_length,
            "An answer's tokens are divided by their number: short answers push harder, to either side.",
            per_length,
            "E[(R − J)/T · ∇log π(y)]",
        ),
        Case(
            "token_mean",
            reduced("token_mean"),
            mean_length,
            "The divisor is the batch's, so it depends on the answer; less so the larger the batch.",
            pair_weighted(shared, 1.0),
            "E[2 (R − R')/(T + T') · ∇log π(y)]",
        ),
        Case(
            "group_token_mean",
            reduced("group_token_mean"),
            mean_length,
            "The same with the group for the batch: it does not fade with more groups.",
            pair_weighted(shared, 1.0),
            "E[2 (R − R')/(T + T') · ∇log π(y)]",
        ),
    ]
