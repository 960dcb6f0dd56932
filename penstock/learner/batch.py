"""A batch as columns: rows of prompts and responses with everything the train step needs, ragged arrays end to end.

The same object crosses between ranks and lies in the archive; its bytes are safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from penstock.services.batch_file import FORMAT as BATCH_FORMAT

Array = NDArray[Any]
_PER_ROW = (
    "prompt_lengths",
    "lengths",
    "temperatures",
    "groups",
    "members",
    "rewards",
    "truncated",
    "weights",
)
_PER_PROMPT_TOKEN = ("prompt_tokens", "prompt_experts")
_OPTIONAL = ("logp_reference", "logp_learner", "kept_counts", "kept_tokens", "experts", "prompt_experts")
DTYPES = {
    "prompt_tokens": np.int32,
    "prompt_lengths": np.int64,
    "tokens": np.int32,
    "lengths": np.int64,
    "temperatures": np.float32,
    "groups": np.int64,
    "members": np.int64,
    "rewards": np.float64,
    "truncated": np.bool_,
    "weights": np.float64,
    "mask": np.bool_,
    "logp_sampler": np.float32,
    "logp_reference": np.float32,
    "token_rewards": np.float32,
    "advantages": np.float32,
    "lags": np.int32,
    "sampled_lineages": np.int32,
    "sampled_steps": np.int32,
    "older_kv": np.bool_,
    "logp_learner": np.float32,
    "kept_counts": np.int32,
    "kept_tokens": np.int32,
    "experts": np.int16,
    "prompt_experts": np.int16,
}


class BatchError(ValueError):
    """Bytes that are no batch of this schema, or columns that do not fit together."""


@dataclass(frozen=True)
class Batch:
    """S responses, N tokens in all of them, M tokens in all prompts (a prompt is repeated for every response)."""

    prompt_tokens: Array
    """[M] int32."""
    prompt_lengths: Array
    """[S]; sums to M."""
    tokens: Array
    """[N] int32, the responses."""
    lengths: Array
    """[S]; sums to N."""
    temperatures: Array
    """[S] at which the response was sampled."""
    groups: Array
    """[S] index of the prompt."""
    members: Array
    """[S] place within its group."""
    rewards: Array
    """[S] task reward of the answer, before any KL is taken off; float64."""
    truncated: Array
    """[S] True where the answer was cut at its token budget."""
    weights: Array
    """[S] weight of each of the row's tokens in the loss, from the reduction over its whole mini-batch; float64."""
    mask: Array
    """[N] True on tokens that count: chosen by the policy, scored, not beyond the staleness bound."""
    logp_sampler: Array
    """[N] under what drew them."""
    token_rewards: Array
    """[N] what falls to each token: step rewards, the KL where it is in the reward, the outcome at the last action."""
    advantages: Array
    """[N]; of no meaning where the algorithm's credit comes from values, which are computed on the ranks."""
    lags: Array
    """[N] train steps between sampling and training."""
    sampled_lineages: Array
    """[N] lineage of the version that sampled the token."""
    sampled_steps: Array
    """[N] its step."""
    older_kv: Array
    """[N] True where the cache was written in part by older weights."""
    logp_reference: Array | None = None
    """[N] under the frozen reference."""
    logp_learner: Array | None = None
    """[N] under the learner's policy at the start of the step; only in the archive."""
    kept_counts: Array | None = None
    """[N] how many tokens top-p and top-k left to draw from; 0 where that is not known. None without such a filter."""
    kept_tokens: Array | None = None
    """[sum of kept_counts] their ids, end to end."""
    experts: Array | None = None
    """[N, layers, top_k] experts chosen when the token was fed to the sampler; None unless the run keeps them."""
    prompt_experts: Array | None = None
    """[M, layers, top_k] the same for the prompts."""

    def __post_init__(self) -> None:
        for field in fields(self):
            column = getattr(self, field.name)
            if column is None:
                continue
            expected, axes = int(self._pieces(field.name).sum()), 3 if field.name.endswith("experts") else 1
            if column.shape[:1] != (expected,) or column.ndim != axes or column.dtype != DTYPES[field.name]:
                wanted = f"{np.dtype(DTYPES[field.name])}[{expected}{', layers, top_k' if axes == 3 else ''}]"
                raise BatchError(f"Batch.{field.name}: expected {wanted}, found {column.dtype}{list(column.shape)}")

    def _pieces(self, name: str) -> Array:
        """[S] how many entries of the column `name` belong to each row."""
        if name in _PER_ROW:
            return np.ones(len(self.lengths), np.int64)
        if name == "kept_tokens":
            assert self.kept_counts is not None, "the two columns come together"
            ends = np.cumsum(np.concatenate([[0], self.kept_counts.astype(np.int64)]))
            return np.diff(ends[np.cumsum(np.concatenate([[0], self.lengths]))])
        return self.prompt_lengths if name in _PER_PROMPT_TOKEN else self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def counts(self) -> Array:
        """[S] tokens that count, per row."""
        return np.asarray([int(m.sum()) for m in self.split(self.mask)], np.int64)

    @property
    def row_tokens(self) -> Array:
        """[S] tokens that go through the model, per row: prompt and response."""
        return self.prompt_lengths + self.lengths

    def split(self, column: Array) -> list[Array]:
        """A per-token column as one array per row."""
        return np.split(column, np.cumsum(self.lengths)[:-1]) if len(self) else []

    def rows(self) -> list[tuple[Array, Array]]:
        """(prompt tokens, response tokens) per row."""
        prompts = np.split(self.prompt_tokens, np.cumsum(self.prompt_lengths)[:-1]) if len(self) else []
        return list(zip(prompts, self.split(self.tokens), strict=True))

    def select(self, indices: Sequence[int]) -> Batch:
        """The rows `indices`, in that order; none of them is a batch of no rows."""
        chosen = np.asarray(indices, np.int64)
        values: dict[str, Array | None] = {}
        for field in fields(self):
            column = getattr(self, field.name)
            if column is None:
                continue
            per_row = field.name in _PER_ROW
            values[field.name] = column[chosen] if per_row else _gather(column, self._pieces(field.name), chosen)
        return Batch(**values)  # type: ignore[arg-type]  # every column but the optional ones is set

    @classmethod
    def join(cls, parts: Sequence[Batch]) -> Batch:
        """The rows of all parts, one after the other. All parts have the same optional columns."""
        names = [f.name for f in fields(cls) if getattr(parts[0], f.name) is not None]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def with_columns(self, **columns: Array) -> Batch:
        """The same batch with some columns replaced."""
        return replace(self, **columns)

    def to_bytes(self, **facts: Any) -> bytes:
        """safetensors, with `facts` (plain JSON values) in its header."""
        columns = {f.name: np.ascontiguousarray(v) for f in fields(self) if (v := getattr(self, f.name)) is not None}
        header = {"format": BATCH_FORMAT, "facts": json.dumps(facts, sort_keys=True)}
        return bytes(safetensors.numpy.save(columns, metadata=header))

    @classmethod
    def from_bytes(cls, data: bytes) -> tuple[Batch, dict[str, Any]]:
        """The batch and its facts. Raises BatchError for anything else, or for another schema."""
        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
            columns = safetensors.numpy.load(data)
        except (safetensors.SafetensorError, ValueError, AttributeError) as error:
            raise BatchError(f"these bytes are no batch: {error}") from error
        facts = _facts(header)
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(columns) - known):
            raise BatchError(f"unknown columns {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        if missing := sorted(known - set(columns) - set(_OPTIONAL)):
            raise BatchError(f"columns {', '.join(missing)} are missing")
        return cls(**columns), facts


def facts_in(file: Path) -> dict[str, Any]:
    """The facts in a file's header, whose columns are not read. Raises FileNotFoundError, and BatchError as
    `Batch.from_bytes` does."""
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            header = opened.metadata() or {}
    except safetensors.SafetensorError as error:
        raise BatchError(f"these bytes are no batch: {error}") from error
    return _facts(header)


def _facts(header: Mapping[str, str]) -> dict[str, Any]:
    if header.get("format") != BATCH_FORMAT:
        raise BatchError(f"expected a batch of format {BATCH_FORMAT}, found {header.get('format')!r}")
    found: dict[str, Any] = json.loads(header["facts"])
    return found


def _gather(column: Array, lengths: Array, chosen: Array) -> Array:
    """Ragged pieces of `column`, in the order of `chosen`."""
    sizes = lengths[chosen]
    # Where each piece begins now, less where it will: added to where an entry will be, it is where the entry is now.
    shifts = (np.cumsum(lengths) - lengths)[chosen] - (np.cumsum(sizes) - sizes)
    return np.asarray(column[np.repeat(shifts, sizes) + np.arange(int(sizes.sum()))])
