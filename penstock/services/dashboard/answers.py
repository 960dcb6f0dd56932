"""What the inspector shows of a run's steps: answers, and the tokens of one with their numbers.

Two sources, `samples` (some answers of most steps) and `archive` (whole batches of some steps), are read into the same
views. Neither torch nor an engine is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.services.rundir import RunDirError
from penstock.services.samples import MARKS, Numbers, SpanRecord, numbers
from penstock.services.versions import Version

Source = Literal["samples", "archive"]
EXCERPT = 240
"""Characters of a prompt or an answer in a list."""
PROMPT_CHARACTERS = 8000
"""Of the prompt above the tokens of an answer."""
COLOURED = ("log_ratio", "advantages")
"""Columns that tokens are coloured by, beside the version."""
_TYPICAL = 0.95
"""The colours are full at this quantile of what is not 0, so that one far-off token does not pale all others."""


class NotRecorded(RunDirError):
    """No such step, answer or metric in what the run has written down; the text names the nearest that is there."""


@dataclass(frozen=True)
class StepEntry:
    """A step of which answers are there."""

    step: int
    lineage: int


@dataclass(frozen=True)
class Steps:
    """A part of the steps of one source, oldest first."""

    source: Source
    total: int
    offset: int
    """Place of the first one listed."""
    steps: list[StepEntry]
    first: int | None
    last: int | None
    """The oldest and the newest step there is."""


@dataclass(frozen=True)
class Answer:
    """One answer in a list."""

    index: int
    """Its place in the step."""
    prompt_index: int | None
    member: int | None
    """Its place in its group."""
    source: str
    """Dataset of its prompt; empty where that is not recorded."""
    prompt: str
    answer: str
    """Both cut short."""
    reward: float | None
    parts: dict[str, float | None]
    unscored: str | None
    finish: str
    tokens: int
    versions: list[str]
    """That sampled it, as VERSION:TOKENS, in the order of its tokens."""
    worker: str
    token_by_token: bool
    """Whether its tokens can be looked at."""


@dataclass(frozen=True)
class Answers:
    """A part of the answers of one step."""

    source: Source
    step: int
    lineage: int
    total: int
    offset: int
    answers: list[Answer]


@dataclass(frozen=True)
class Span:
    """A run of tokens that the same weights sampled; where the next one begins, the weights were swapped."""

    start: int
    count: int
    version: str
    lag: int
    older_kv: bool


@dataclass(frozen=True)
class Scale:
    """How large a column's values are, over all tokens that are recorded, by absolute value."""

    typical: float
    """95 in 100 of those that are not 0 are no larger."""
    largest: float


@dataclass(frozen=True)
class Stretch:
    """Tokens side by side; a column has one entry per token, or is None where the run has not recorded it."""

    start: int
    tokens: list[int]
    texts: list[str] | None
    marks: list[int]
    logp_sampler: Numbers
    logp_learner: Numbers | None = None
    log_ratio: Numbers | None = None
    """log π_prox/μ, in nats."""
    importance: Numbers | None = None
    """π_prox/μ."""
    logp_reference: Numbers | None = None
    advantages: Numbers | None = None
    token_rewards: Numbers | None = None
    trust_weights: Numbers | None = None
    values: Numbers | None = None
    returns: Numbers | None = None


@dataclass(frozen=True)
class Tokens:
    """A part of one answer, token by token."""

    source: Source
    step: int
    lineage: int
    index: int
    begins_at: str
    """The weights that the step started from."""
    length: int
    """Tokens of the whole answer."""
    start: int
    count: int
    """What was asked for."""
    stretches: list[Stretch]
    """What is recorded of it; more than one where tokens in between are not."""
    recorded: list[tuple[int, int]]
    """Of the whole answer: first token and the one behind the last."""
    spans: list[Span]
    """Of the whole answer."""
    scales: dict[str, Scale]
    """By column: log_ratio, advantages."""
    missing: dict[str, str]
    """Columns that are not there, and why."""
    prompt: str
    about: Answer
    marks: dict[str, int] = field(default_factory=lambda: dict(MARKS))
    """What the bits of `Stretch.marks` mean."""


# --- from what is recorded to what is shown ---------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Recorded tokens side by side: columns of one length by name, `tokens`, `marks` and `logp_sampler` always among
    them; NaN where there is no number."""

    start: int
    columns: Mapping[str, NDArray[Any]]
    texts: Callable[[int, int], list[str] | None]
    """Of the tokens from one place in the piece up to another."""

    @property
    def end(self) -> int:
        return self.start + len(self.columns["tokens"])

    def with_ratios(self) -> Piece:
        """With log π_prox/μ and π_prox/μ, where π_prox is known."""
        if "logp_learner" not in self.columns:
            return self
        ratio = self.columns["logp_learner"].astype(np.float64) - self.columns["logp_sampler"]
        with np.errstate(over="ignore"):
            more = {"log_ratio": ratio, "importance": np.exp(ratio)}
        return Piece(self.start, {**self.columns, **more}, self.texts)

    def between(self, begin: int, end: int) -> Stretch | None:
        """What of it lies between two places of the answer."""
        first, last = max(begin, self.start) - self.start, min(end, self.end) - self.start
        if first >= last:
            return None
        cut = {name: column[first:last] for name, column in self.columns.items()}
        plain: dict[str, Any] = {name: cut.pop(name).tolist() for name in ("tokens", "marks")}
        rest: dict[str, Any] = {name: numbers(column) for name, column in cut.items()}
        return Stretch(start=self.start + first, texts=self.texts(first, last), **plain, **rest)


@dataclass(frozen=True)
class Recorded:
    """Everything that is known of one answer."""

    about: Answer
    prompt: str
    length: int
    begins_at: str
    spans: Sequence[SpanRecord]
    pieces: Sequence[Piece]
    missing: Mapping[str, str]

    def tokens(self, source: Source, version: Version, start: int, count: int) -> Tokens:
        """Tokens `start` to `start + count`; the step ended in `version`."""
        pieces = [piece.with_ratios() for piece in self.pieces]
        scales = {name: _scale([p.columns[name] for p in pieces if name in p.columns]) for name in COLOURED}
        return Tokens(
            source=source,
            step=version.step,
            lineage=version.lineage,
            index=self.about.index,
            begins_at=self.begins_at,
            length=self.length,
            start=start,
            count=count,
            stretches=[part for piece in pieces if (part := piece.between(start, start + count)) is not None],
            recorded=[(piece.start, piece.end) for piece in pieces],
            spans=spans_of(self.spans),
            scales={name: scale for name, scale in scales.items() if scale is not None},
            missing=dict(self.missing),
            prompt=self.prompt[:PROMPT_CHARACTERS],
            about=self.about,
        )


def spans_of(spans: Sequence[SpanRecord]) -> list[Span]:
    """With the place at which each begins; neighbours of the same weights and cache are one."""
    merged: list[SpanRecord] = []
    for span in spans:
        last = merged[-1] if merged else None
        if last is not None and (last.version, last.older_kv) == (span.version, span.older_kv):
            merged[-1] = msgspec.structs.replace(last, count=last.count + span.count)
        else:
            merged.append(span)
    starts = accumulate((span.count for span in merged), initial=0)
    return [Span(at, s.count, s.version, s.lag, s.older_kv) for at, s in zip(starts, merged, strict=False)]


def _scale(columns: Sequence[NDArray[Any]]) -> Scale | None:
    sizes = np.abs(np.concatenate([np.zeros(0), *columns]))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    return Scale(float(np.quantile(sizes, _TYPICAL)), float(sizes.max())) if sizes.size else None


def excerpt(text: str, most: int = EXCERPT) -> str:
    """The beginning of a text on one line."""
    head = " ".join(text[: most + 1].split())
    return head if len(text) <= most else f"{head[:most]} …"


def page(items: Sequence[Any], offset: int, limit: int, make: Callable[[int, Any], Any]) -> list[Any]:
    """`make(place, item)` of so many items from `offset` on."""
    return [make(place, items[place]) for place in range(offset, min(len(items), offset + limit))]
