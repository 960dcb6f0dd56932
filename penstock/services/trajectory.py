"""The records of one trajectory's life: a prompt, its completions, scored trajectories, a group.

Each stage has a record of its own, frozen and complete at birth. Lengths are checked when a record is
made, and so again when one is decoded. Arrays are read-only and one-dimensional.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.services.versions import Version

TokenIds = NDArray[np.int32]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Experts = NDArray[np.int16]

Finish = Literal["stop", "length", "stale"]
"""Why a completion ended: the model stopped, its token budget was used up, or it was cut because it
outlived `max_lag` while it was still being generated."""
FINISHES: tuple[str, ...] = get_args(Finish)


class RecordError(ValueError):
    """A record whose parts do not fit together; the text names record, field, found and expected."""


class Record(msgspec.Struct, frozen=True, kw_only=True, eq=False, forbid_unknown_fields=True):
    """Base of all records: equality by value, arrays included."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_equal(getattr(self, f), getattr(other, f)) for f in self.__struct_fields__)

    __hash__ = None  # type: ignore[assignment]  # holds arrays


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return (
            isinstance(a, np.ndarray)
            and isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


_DTYPES: dict[type, np.dtype[Any]] = {kind: np.dtype(kind) for kind in (np.int16, np.int32, np.float32, np.bool_)}
"""To compare an array's type with one of these takes a tenth of the time that numpy needs to look up a Python type."""


def _array(owner: Record, field: str, kind: type, length: int | None = None) -> None:
    """Check one array field and make it read-only."""
    value, dtype = getattr(owner, field), _DTYPES[kind]
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 1:
        found = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        name = f"{type(owner).__name__}.{field}"
        raise RecordError(f"{name}: expected a one-dimensional {dtype} array, found {found}")
    if length is not None and len(value) != length:
        name = f"{type(owner).__name__}.{field}"
        raise RecordError(f"{name}: expected {length} entries (one per token), found {len(value)}")
    value.setflags(write=False)


class Sampling(Record, frozen=True, kw_only=True, eq=False):
    """How tokens are drawn; what the learner needs to reproduce the distribution that was sampled from."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    max_tokens: int = 256
    """Budget of new tokens per completion."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end a completion, in addition to the tokenizer's end-of-sequence id."""

    @property
    def filtered(self) -> bool:
        """Whether tokens are drawn from less than the vocabulary; greedy ones are not drawn."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0)


class Prompt(Record, frozen=True, kw_only=True, eq=False):
    """One prompt as issued: the `index`-th of the run's deterministic stream."""

    index: int
    """Position in the prompt stream, from 0; the ledger's key."""
    source: str
    """Name of the dataset in the mixture."""
    row: int
    """Row in that dataset."""
    epoch: int
    tokens: TokenIds
    text: str
    """What the tokens were made from; for rewards and people, never tokenised again."""
    columns: dict[str, Any] = {}
    """The row's other columns (plain JSON values), handed to reward functions."""

    def __post_init__(self) -> None:
        _array(self, "tokens", np.int32)
        if len(self.tokens) == 0:
            raise RecordError(f"Prompt.tokens: prompt {self.index} ({self.source} row {self.row}) has no tokens")


class Span(Record, frozen=True, kw_only=True, eq=False):
    """A run of tokens that the same weights sampled."""

    lineage: int
    step: int
    count: int
    older_kv: bool = False
    """True where the KV cache these tokens attended to was, in part, written by older weights."""

    @property
    def version(self) -> Version:
        return Version(self.lineage, self.step)


class Kept(Record, frozen=True, kw_only=True, eq=False):
    """Which tokens top-p and top-k left to draw from, for every token of an answer, end to end."""

    counts: TokenIds
    """[T] how many were left; 0 where it is not known, because more were left than are recorded."""
    tokens: TokenIds
    """[sum of counts] their ids, ascending within a token."""

    def __post_init__(self) -> None:
        _array(self, "counts", np.int32)
        _array(self, "tokens", np.int32, int(self.counts.sum()))


class Routing(Record, frozen=True, kw_only=True, eq=False):
    """Which experts a mixture-of-experts model chose when it sampled, for every position of prompt and answer.

    Arrays are flat; their shape is [positions, layers, top_k], layers being those that have experts.
    """

    layers: int
    top_k: int
    prompt: Experts
    """[P · layers · top_k]."""
    answer: Experts
    """[T · layers · top_k]; the last position was never fed to the model that sampled it and holds zeros."""

    def __post_init__(self) -> None:
        width = self.layers * self.top_k
        for field in ("prompt", "answer"):
            _array(self, field, np.int16)
            if width < 1 or len(getattr(self, field)) % width:
                raise RecordError(f"Routing.{field}: {len(getattr(self, field))} entries are no multiple of {width}")


class StepScore(Record, frozen=True, kw_only=True, eq=False):
    """What a process reward said of one step of an answer."""

    token: int
    """The step's last token, counted from 0 within the answer."""
    score: float
    """How good the answer is up to and including this step; the step's own reward is the rise since the last one."""


class Unfinished(Record, frozen=True, kw_only=True, eq=False, tag=True):
    """What exists of a completion that another worker shall continue."""

    tokens: TokenIds
    logprobs: Floats
    spans: tuple[Span, ...]
    kept: Kept | None = None
    routing: Routing | None = None

    def __post_init__(self) -> None:
        _check_sampled(self)


class Completion(Record, frozen=True, kw_only=True, eq=False, tag=True):
    """One finished answer as the sampler produced it. T tokens; all per-token arrays are [T]."""

    tokens: TokenIds
    logprobs: Floats
    """Log-probability of each token under the processed distribution it was drawn from, in nats; 0 where it is no
    action."""
    actions: Mask
    """True for tokens the policy chose; False for tokens a tool or the environment wrote."""
    spans: tuple[Span, ...]
    """Weight version per token, run-length encoded; counts sum to T."""
    finish: Finish
    text: str
    worker: str
    engine: str
    """Name and build of the engine, for example `vllm 0.32.0 cpu float32`."""
    started: float
    """Unix seconds."""
    ended: float
    kept: Kept | None = None
    """What top-p and top-k left; None when tokens were drawn from the whole vocabulary."""
    routing: Routing | None = None
    """Experts chosen at sampling time; None unless the run keeps them."""

    def __post_init__(self) -> None:
        _check_sampled(self)
        _array(self, "actions", np.bool_, len(self.tokens))
        if self.finish not in FINISHES:
            raise RecordError(f"Completion.finish: expected one of {', '.join(FINISHES)}, found {self.finish!r}")


class Trajectory(Record, frozen=True, kw_only=True, eq=False):
    """A completion with its judgement. Unscored when `reward` is None; then `unscored` says why."""

    completion: Completion
    reward: float | None
    """Weighted sum of the parts, without what their steps say; None when any part that counts failed."""
    parts: dict[str, float | None]
    """Reward by rule name, unweighted; None where that rule failed or abstained."""
    unscored: str | None = None
    """Cause, for example `reward 'exact': timed out after 5.0 s`."""
    reference_logprobs: Floats | None = None
    """[T] log-probabilities under the frozen reference, temperature and sampling mask as when it was sampled; None
    when the run uses no reference."""
    steps: tuple[StepScore, ...] = ()
    """What a process reward said of the answer's steps, by rising token; empty without one."""

    def __post_init__(self) -> None:
        if (self.reward is None) == (self.unscored is None):
            raise RecordError(
                "Trajectory: exactly one of reward and unscored is set; "
                f"found reward={self.reward!r}, unscored={self.unscored!r}"
            )
        if self.reward is not None and not np.isfinite(self.reward):
            raise RecordError(f"Trajectory.reward: expected a finite number, found {self.reward!r}")
        if self.reference_logprobs is not None:
            _array(self, "reference_logprobs", np.float32, len(self.completion.tokens))
        ends = [step.token for step in self.steps]
        if ends != sorted(set(ends)) or (ends and not 0 <= ends[0] <= ends[-1] < len(self.completion.tokens)):
            raise RecordError(
                f"Trajectory.steps: ends must rise and lie within {len(self.completion.tokens)} tokens, found {ends}"
            )
        if not all(np.isfinite(step.score) for step in self.steps):
            raise RecordError(f"Trajectory.steps: expected finite scores, found {[s.score for s in self.steps]}")

    @property
    def task_reward(self) -> float | None:
        """What the answer earns in all: its reward, and how good it is after its last judged step. None where
        unscored."""
        if self.reward is None or not self.steps:
            return self.reward
        return self.reward + self.steps[-1].score


class Group(Record, frozen=True, kw_only=True, eq=False):
    """All trajectories of one prompt: the unit the ledger counts and the learner takes."""

    prompt: Prompt
    sampling: Sampling
    trajectories: tuple[Trajectory, ...]

    def __post_init__(self) -> None:
        if not self.trajectories:
            raise RecordError(f"Group.trajectories: prompt {self.prompt.index} has none")

    @property
    def scored(self) -> tuple[Trajectory, ...]:
        return tuple(t for t in self.trajectories if t.reward is not None)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans of all members, one after the other."""
        return tuple(s for t in self.trajectories for s in t.completion.spans)


class PartialGroup(Record, frozen=True, kw_only=True, eq=False):
    """A group handed back before it was complete: another worker finishes its unfinished members.

    Holds no prompt: the ledger's index names it, and the stream gives the same one again.
    """

    members: tuple[Completion | Unfinished, ...]


def _check_sampled(record: Completion | Unfinished) -> None:
    """Tokens, log-probs and spans of the same length; log-probs no greater than zero where they count."""
    name = type(record).__name__
    _array(record, "tokens", np.int32)
    _array(record, "logprobs", np.float32, len(record.tokens))
    # The smallest is no number when any is none; this looks at the array once and makes no other.
    if len(record.logprobs) and np.isnan(np.minimum.reduce(record.logprobs)):
        at = int(np.flatnonzero(np.isnan(record.logprobs))[0])
        raise RecordError(f"{name}.logprobs: entry {at} is not a number")
    counted = sum(span.count for span in record.spans)
    if counted != len(record.tokens) or any(span.count < 1 for span in record.spans):
        raise RecordError(
            f"{name}.spans: counts must be positive and sum to {len(record.tokens)} tokens, "
            f"found {[span.count for span in record.spans]}"
        )
    if record.kept is not None and len(record.kept.counts) != len(record.tokens):
        raise RecordError(f"{name}.kept: expected {len(record.tokens)} counts, found {len(record.kept.counts)}")
    if record.routing is not None:
        width = record.routing.layers * record.routing.top_k
        if len(record.routing.answer) != width * len(record.tokens):
            raise RecordError(
                f"{name}.routing: expected {width} experts for each of {len(record.tokens)} tokens, found "
                f"{len(record.routing.answer)} in all"
            )
