"""A batch as columns: rows of prompts and responses with everything the train step needs, ragged arrays end to end.

The same object crosses between ranks and lies in the archive; its bytes are safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

Array = NDArray[Any]
_FORMAT = "penstock-batch-1"
_PER_ROW = ("prompt_lengths", "lengths", "temperatures", "groups", "members", "weights")
_DTYPES = {
    "prompt_tokens": np.int32,
    "prompt_lengths": np.int64,
    "tokens": np.int32,
    "lengths": np.int64,
    "temperatures": np.float32,
    "groups": np.int64,
    "members": np.int64,
    "weights": np.float64,
    "mask": np.bool_,
    "logp_sampler": np.float32,
    "logp_reference": np.float32,
    "advantages": np.float32,
    "lags": np.int32,
    "older_kv": np.bool_,
    "logp_learner": np.float32,
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
    weights: Array
    """[S] weight of each of the row's tokens in the loss, from the reduction over its whole mini-batch; float64."""
    mask: Array
    """[N] True on tokens that count: chosen by the policy, scored, not beyond the staleness bound."""
    logp_sampler: Array
    """[N] under what drew them."""
    advantages: Array
    """[N]."""
    lags: Array
    """[N] train steps between sampling and training."""
    older_kv: Array
    """[N] True where the cache was written in part by older weights."""
    logp_reference: Array | None = None
    """[N] under the frozen reference."""
    logp_learner: Array | None = None
    """[N] under the learner's policy at the start of the step; only in the archive."""

    def __post_init__(self) -> None:
        rows, tokens, prompts = len(self.lengths), int(self.lengths.sum()), int(self.prompt_lengths.sum())
        for field in fields(self):
            column = getattr(self, field.name)
            if column is None:
                continue
            expected = rows if field.name in _PER_ROW else prompts if field.name == "prompt_tokens" else tokens
            if column.shape != (expected,) or column.dtype != _DTYPES[field.name]:
                wanted = f"{np.dtype(_DTYPES[field.name])}[{expected}]"
                raise BatchError(f"Batch.{field.name}: expected {wanted}, found {column.dtype}{list(column.shape)}")

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
            if field.name in _PER_ROW:
                values[field.name] = column[chosen]
            else:
                lengths = self.prompt_lengths if field.name == "prompt_tokens" else self.lengths
                values[field.name] = _gather(column, lengths, chosen)
        return Batch(**values)  # type: ignore[arg-type]  # every column but the two optional ones is set

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
        header = {"format": _FORMAT, "facts": json.dumps(facts, sort_keys=True)}
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
        if header.get("format") != _FORMAT:
            raise BatchError(f"expected a batch of format {_FORMAT}, found {header.get('format')!r}")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(columns) - known):
            raise BatchError(f"unknown columns {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        if missing := sorted(known - set(columns) - {"logp_reference", "logp_learner"}):
            raise BatchError(f"columns {', '.join(missing)} are missing")
        return cls(**columns), json.loads(header["facts"])


def _gather(column: Array, lengths: Array, chosen: Array) -> Array:
    """Ragged pieces of `column`, in the order of `chosen`."""
    if len(chosen) == 0:
        return column[:0]
    pieces = np.split(column, np.cumsum(lengths)[:-1])
    return np.concatenate([pieces[i] for i in chosen])
