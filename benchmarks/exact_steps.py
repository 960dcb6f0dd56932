"""Step rewards, on-policy: scores of an answer's steps become rewards of its tokens, and what the gradient is then.

Rewards are laid beside tokens by the learner's own function. Targets and closed forms are written in outcomes and
scores, and know nothing of what falls to which token.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import exact_forms as forms
from benchmarks.exact_case import Case, Exact, plain
from benchmarks.exact_estimators import Estimator
from benchmarks.exact_worlds import MDP, World, waves
from penstock.learner.algorithms.credit import token_rewards

ENDS = (1, 3, 4)
"""Last tokens of an answer's steps: two are the environment's, in answer to an action; one is the last action."""
OUTCOMES = 0.5 * waves((len(MDP.prompts),), 2.4)
"""[N] reward of each answer, besides what its steps say."""


def _judged(falls_back: bool = False, ahead: bool = False) -> Tensor:
    """[N, 3] scores of the steps. Each depends on the answer up to the step's last token, unless the first looks
    `ahead` to the answer's end; the last is 0 when the score `falls_back`."""
    everything = torch.arange(len(MDP.prompts))
    known = [everything if ahead else MDP.histories[:, 2], MDP.histories[:, 4], everything]
    scores = torch.stack([waves((200,), 0.5 + k)[number] for k, number in enumerate(known)], -1)
    if falls_back:
        scores[:, -1] = 0.0
    return scores


def _world(name: str, scores: Tensor) -> World:
    """The MDP's answers with an outcome and scores in place of its rewards."""
    laid = [
        token_rewards(float(outcome), mask, list(zip(ENDS, row, strict=True)))
        for outcome, mask, row in zip(OUTCOMES, MDP.mask, scores.tolist(), strict=True)
    ]
    return replace(MDP, name=name, rewards=torch.stack(laid))


def _of_judgement(scores: Tensor) -> Exact:
    """∇E[outcome + last score]."""
    return lambda e: forms.policy_gradient(e.world, e.tables.now, OUTCOMES + scores[:, -1])


def _of_outcome(e: Estimator) -> Tensor:
    """∇E[outcome], as if no step had been judged."""
    return forms.policy_gradient(e.world, e.tables.now, OUTCOMES)


def _less_score_before(e: Estimator) -> Tensor:
    """A rise counts from the choice's own step on: what is left is everything less the score before the choice."""
    amounts = torch.zeros_like(e.world.rewards)
    amounts[:, 0] = OUTCOMES + AHEAD[:, 2]
    amounts[:, 2] = amounts[:, 0] - AHEAD[:, 0]
    amounts[:, 4] = amounts[:, 0] - AHEAD[:, 1]
    return forms.over_tokens(e.world, e.tables.now, e.tables.now, amounts)


def _discounted(gamma: float) -> Exact:
    """The rises, discounted per choice, by summation in parts: of every score a share of 1 − γ stays."""

    def form(e: Estimator) -> Tensor:
        first, second, last = SCORES.unbind(-1)
        amounts = torch.zeros_like(e.world.rewards)
        amounts[:, 4] = OUTCOMES + last - second
        amounts[:, 2] = (1 - gamma) * second + gamma * (OUTCOMES + last) - first
        amounts[:, 0] = (1 - gamma) * (first + gamma * second) + gamma**2 * (OUTCOMES + last)
        return forms.over_tokens(e.world, e.tables.now, e.tables.now, amounts)

    return form


SCORES, AHEAD = _judged(), _judged(ahead=True)
STEPS = _world("steps", SCORES)
SHAPED = _world("steps, 0 at the end", _judged(falls_back=True))
LOOKING = _world("steps, looking ahead", AHEAD)
JUDGED = _of_judgement(SCORES)
BY_VALUES = {"value": {"kind": "own"}, "credit": {"kind": "gae", "lam": 0.95}}
BY_ANSWER = {"kind": "sequence_is", "aggregate": "product", "max_weight": 1000.0}
"""A bound that nothing reaches here."""


def _alone(world: World, setting: str = "on", **cells: object) -> Estimator:
    """Answers one by one."""
    return Estimator(world, setting, plain(baseline={"kind": "none"}, **cells), 1)


def _to_go(world: World, gamma: float = 1.0) -> Estimator:
    return _alone(world, credit={"kind": "discounted_return", "gamma": gamma})


STEPWISE = [
    Case(
        "outcome, leave one out",
        Estimator(STEPS, "on", plain()),
        JUDGED,
        "Rises add up to the last score: every token answers for all of it.",
        JUDGED,
    ),
    Case(
        "return to go",
        _to_go(STEPS),
        JUDGED,
        "What is left out is the score before the choice, a baseline; rises on the environment's tokens count for the "
        "action before.",
        JUDGED,
    ),
    Case(
        "GAE, λ = 0.95, exact values",
        _alone(STEPS, **BY_VALUES),
        JUDGED,
        "Rises are rewards like any other.",
        JUDGED,
    ),
    Case(
        "sequence_is, product",
        _alone(STEPS, "stale", trust=BY_ANSWER),
        JUDGED,
        "Off-policy the weight of the whole answer is right here too.",
        JUDGED,
    ),
    Case(
        "return to go, score 0 at the end",
        _to_go(SHAPED),
        _of_outcome,
        "Scores that end at 0 leave the gradient as it is without them.",
        _of_outcome,
    ),
    Case(
        "return to go, γ = 0.9",
        _to_go(STEPS, 0.9),
        JUDGED,
        "Discounted, rises no longer cancel: of every score on the way a share of 1 − γ stays.",
        _discounted(0.9),
        "the rises' returns, by hand",
    ),
    Case(
        "return to go, a score that looks ahead",
        _to_go(LOOKING),
        _of_judgement(AHEAD),
        "A score of a step that depends on what comes after it is no baseline of what comes after it.",
        _less_score_before,
        "E[Σ (R − s before) ∇log π]",
    ),
]
"""The last step of an answer ends at its last action, so that R = outcome + last score."""
