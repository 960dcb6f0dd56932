"""What the tests of the learner's maths share: small tensors, and every function with coefficients that are in use."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from penstock.learner.algorithms import corrections, kl, objectives, rejections

F = torch.float64
LN2 = math.log(2)
CLOSE = {"rel": 1e-9, "abs": 1e-9}


def row(*values, dtype=F):
    return torch.tensor([values], dtype=dtype)


def rows(lists, dtype=F):
    """Lists of one length as [rows, window]."""
    return torch.tensor(lists, dtype=dtype)


def everywhere(tensor):
    return torch.ones_like(tensor, dtype=torch.bool)


def slopes(losses, logp):
    """d(sum of the losses)/d logp, as lists."""
    return torch.autograd.grad(losses.sum(), logp)[0].tolist()


OBJECTIVES = {
    "policy_gradient": objectives.policy_gradient,
    "ppo_clip": functools.partial(objectives.ppo_clip, clip_low=0.2, clip_high=0.28),
    "dual_clip": functools.partial(objectives.ppo_clip, clip_low=0.2, clip_high=0.28, dual_clip=3.0),
    "ppo_kl": functools.partial(objectives.ppo_kl, coefficient=0.7),
    "gspo": functools.partial(objectives.gspo, clip_low=0.2, clip_high=0.3),
    "cispo": functools.partial(objectives.cispo, max_weight=5.0),
    "mirror_descent": functools.partial(objectives.mirror_descent, tau=0.1),
}
TRUSTS = {
    "uncorrected": corrections.uncorrected,
    "truncated_is": functools.partial(corrections.truncated_is, max_weight=2.0),
    "masked_is": functools.partial(corrections.masked_is, min_weight=0.5, max_weight=5.0),
    "decoupled": functools.partial(corrections.decoupled, max_weight=None),
    "decoupled_bounded": functools.partial(corrections.decoupled, max_weight=4.0),
} | {
    f"sequence_{aggregate}_{beyond}": functools.partial(
        corrections.sequence_is, aggregate=aggregate, beyond=beyond, max_weight=3.0
    )
    for aggregate in ("product", "geometric_mean")
    for beyond in ("mask", "clip")
}
REJECTIONS = {
    "keep_all": functools.partial(rejections.keep_all, bound=math.inf),
    "off_policy_sequence": functools.partial(rejections.off_policy_sequence, bound=math.inf, max_divergence=0.1),
    "second_moment": functools.partial(rejections.second_moment, bound=0.5),
}
PENALTIES = dict(kl.PENALTIES)


@dataclass(frozen=True)
class Token:
    """One token of a random answer."""

    logp: float
    prox: float
    sampler: float
    advantage: float
    counts: bool


@st.composite
def answers(draw, most=3, longest=5):
    """A few answers of one width, as lists of tokens."""
    logs = st.floats(-6, 0)
    token = st.builds(Token, logs, logs, logs, st.floats(-3, 3), st.booleans())
    width = draw(st.integers(1, longest))
    return draw(st.lists(st.lists(token, min_size=width, max_size=width), min_size=1, max_size=most))


def column(found, name, dtype=F):
    """One field of all tokens as [rows, window]."""
    kind = torch.bool if name == "counts" else dtype
    return torch.tensor([[getattr(token, name) for token in answer] for answer in found], dtype=kind)


def columns(found):
    """(prox, sampler, advantages, mask) of `answers`."""
    return tuple(column(found, name) for name in ("prox", "sampler", "advantage", "counts"))
