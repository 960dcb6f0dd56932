"""A micro-batch on the engine's device: rows side by side with everything that the train step needs of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from penstock.learner.batch import Array, Batch
from penstock.learner.routing import padded_experts
from penstock.services.logprob_head import KeptTokens
from penstock.services.logprobs import PaddedRows, pad_rows


@dataclass(frozen=True)
class MicroBatch:
    """Rows with every per-token column in the window of `rows`, 0 outside the responses."""

    rows: PaddedRows
    temperatures: Float[Tensor, "rows 1"]
    weights: Float[Tensor, " rows"]
    truncated: Bool[Tensor, " rows"]
    mask: Bool[Tensor, "rows window"]
    logp_sampler: Float[Tensor, "rows window"]
    token_rewards: Float[Tensor, "rows window"]
    advantages: Float[Tensor, "rows window"]
    lags: Int[Tensor, "rows window"]
    older_kv: Bool[Tensor, "rows window"]
    logp_reference: Float[Tensor, "rows window"] | None
    kept: KeptTokens | None
    """What top-p and top-k left to draw the responses' tokens from; None where nothing was removed."""
    experts: Int[Tensor, "layers tokens top_k"] | None
    """What the sampler's routers chose, for `routing.replay`; None unless the run keeps it."""
    logp_prox: Float[Tensor, "rows window"] | None = None
    """Under the policy at the start of the step; None where the step has a single update, which starts from it."""
    old_values: Float[Tensor, "rows window"] | None = None
    """What the value model said at the start of the step; None without one."""
    returns: Float[Tensor, "rows window"] | None = None
    """What it is to say."""
    within: Bool[Tensor, "rows window"] | None = None
    """Tokens that got credit from values: those that count and whose log-ratio at the start is a number within range.
    None without values."""

    @property
    def credited(self) -> Bool[Tensor, "rows window"]:
        """Tokens with an advantage and, where there are values, a return."""
        return self.mask if self.within is None else self.within

    @classmethod
    def of(cls, batch: Batch, rows: list[int], device: torch.device) -> MicroBatch:
        """The rows `rows` of `batch`; without any, one row that weighs nothing."""
        part = batch.select(rows)
        padded = pad_rows(part.rows(), device=device)
        count = max(1, len(rows))
        return cls(
            rows=padded,
            temperatures=_filled(part.temperatures, count, 1.0).unsqueeze(-1).to(device),
            weights=_filled(part.weights, count, 0.0).to(device),
            truncated=_filled(part.truncated, count, False).to(device),
            mask=_window(part.mask, padded),
            logp_sampler=_window(part.logp_sampler, padded),
            token_rewards=_window(part.token_rewards, padded),
            advantages=_window(part.advantages, padded),
            lags=_window(part.lags, padded),
            older_kv=_window(part.older_kv, padded),
            logp_reference=None if part.logp_reference is None else _window(part.logp_reference, padded),
            kept=_kept(part, device),
            experts=padded_experts(part, padded),
        )


def _kept(part: Batch, device: torch.device) -> KeptTokens | None:
    if part.kept_counts is None or part.kept_tokens is None:
        return None
    counts, tokens = (torch.from_numpy(c.astype(np.int64)).to(device) for c in (part.kept_counts, part.kept_tokens))
    return KeptTokens(counts, tokens)


def _filled(column: Array, count: int, value: float) -> Tensor:
    """A per-row column; one row of `value` where the micro-batch is empty."""
    return torch.from_numpy(column.copy()) if len(column) else torch.full((count,), value)


def _window(column: Array, rows: PaddedRows) -> Tensor:
    """A flat per-token column laid into the window; both run row by row."""
    values = torch.from_numpy(column.copy()).to(rows.responses.device)
    laid = torch.zeros(rows.responses.shape, dtype=values.dtype, device=values.device)
    laid[rows.responses] = values
    return laid
