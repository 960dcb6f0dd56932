"""What is written of a sampled answer token by token: the learner writes it, the inspector reads it.

Columns are called as those of a batch are (`learner/batch.py`). Of an answer longer than `recording.sample_tokens` the
first and the last tokens are kept, so that no answer makes a file large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Numbers = list[float | None]
"""Rounded to a ten-millionth; None where there is no number: infinite, undefined, or of no meaning for that token."""
Columns = Mapping[str, NDArray[Any]]
Texts = Callable[[Sequence[int]], list[str]]
"""Ids of tokens side by side → the text of each."""

ACTION, COUNTS, LEFT_OUT, WEIGHT_CUT, CLIPPED_LOW, CLIPPED_HIGH, OLDER_KV = (1 << bit for bit in range(7))
MARKS = {
    "action": ACTION,
    "counts": COUNTS,
    "left_out": LEFT_OUT,
    "weight_cut": WEIGHT_CUT,
    "clipped_low": CLIPPED_LOW,
    "clipped_high": CLIPPED_HIGH,
    "older_kv": OLDER_KV,
}
"""What can be said of a token, as bits: the policy chose it; it counts for the step (scored, and not beyond the
bound); the objective leaves it out (correction, rejection, or a ratio out of range); its importance weight was cut at
the bound; the objective clipped it in at least one of the step's updates, below or above; older weights wrote a part
of the cache it was decoded on."""
PLACES = 7
"""Decimals that are kept: a float32 of the size of a log-prob has no more."""


class SpanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run of tokens that the same weights sampled."""

    version: str
    count: int
    lag: int
    """Train steps between sampling and training."""
    older_kv: bool = False


class Stretch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens side by side; every column has one entry per token."""

    start: int
    """Place of the first one in the answer."""
    tokens: list[int]
    texts: list[str] | None = None
    """Empty for a token that is only a part of a character; the last of its parts has the whole of it."""
    logp_sampler: Numbers = []
    """Under what drew it, in nats, as all log-probs."""
    marks: list[int] = []
    """Bits of MARKS."""
    logp_learner: Numbers | None = None
    """Under the learner's policy at the start of the step, π_prox."""
    logp_reference: Numbers | None = None
    advantages: Numbers | None = None
    """As the objective took them: from the value model where there is one, whitened where the row says so."""
    token_rewards: Numbers | None = None
    trust_weights: Numbers | None = None
    """What the correction made of π_prox/μ, and multiplied the objective by."""
    values: Numbers | None = None
    returns: Numbers | None = None


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of a train step, token by token."""

    length: int
    """Tokens of the whole answer."""
    begins_at: str
    """The weights that the step started from."""
    spans: list[SpanRecord]
    """Of the whole answer."""
    stretches: list[Stretch]
    """One, or the beginning and the end of a longer answer."""
    missing: dict[str, str] = {}
    """Columns that are not there, and why."""


def stretches(columns: Columns, texts: Texts | None, at_most: int) -> list[Stretch]:
    """The columns of one answer, [T] each, as one stretch, or as two of `at_most` tokens together."""
    length = len(columns["tokens"])
    half = at_most - at_most // 2
    ends = [(0, length)] if length <= at_most else [(0, half), (length - at_most // 2, length)]
    return [_stretch(columns, texts, begin, end) for begin, end in ends if end > begin]


def _stretch(columns: Columns, texts: Texts | None, begin: int, end: int) -> Stretch:
    tokens: list[int] = columns["tokens"][begin:end].tolist()
    marks: list[int] = columns["marks"][begin:end].tolist()
    rest = {name: numbers(part[begin:end]) for name, part in columns.items() if name not in ("tokens", "marks")}
    named = None if texts is None else texts(tokens)
    return Stretch(start=begin, tokens=tokens, texts=named, marks=marks, **rest)


def numbers(column: NDArray[Any]) -> Numbers:
    """A column as JSON can say it."""
    rounded = np.round(column.astype(np.float64), PLACES)
    return [value if finite else None for value, finite in zip(rounded.tolist(), np.isfinite(rounded), strict=True)]
