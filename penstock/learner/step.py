"""One train step, as in the papers: log-probs, trust, objective, KL, reduction, update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from penstock.learner.algorithms.bound import BoundAlgorithm
from penstock.learner.algorithms.composition import compose
from penstock.learner.batch import Array, Batch
from penstock.learner.config import LearnerSection
from penstock.learner.deal import Share
from penstock.learner.diagnostics import observe
from penstock.learner.engine import Engine
from penstock.learner.schedule import learning_rate
from penstock.learner.tally import Tally
from penstock.services.logprobs import PaddedRows, pad_rows, window_logprobs


@dataclass(frozen=True)
class MicroBatch:
    """Rows on the engine's device, every per-token column in the window of `rows` and 0 outside the responses."""

    rows: PaddedRows
    temperatures: Float[Tensor, "rows 1"]
    weights: Float[Tensor, " rows"]
    mask: Bool[Tensor, "rows window"]
    logp_sampler: Float[Tensor, "rows window"]
    advantages: Float[Tensor, "rows window"]
    lags: Int[Tensor, "rows window"]
    older_kv: Bool[Tensor, "rows window"]
    logp_reference: Float[Tensor, "rows window"] | None

    @classmethod
    def of(cls, batch: Batch, rows: list[int], device: torch.device) -> MicroBatch:
        part = batch.select(rows)
        padded = pad_rows(part.rows(), device=device)
        count = max(1, len(rows))
        return cls(
            rows=padded,
            temperatures=_filled(part.temperatures, count, 1.0).unsqueeze(-1).to(device),
            weights=_filled(part.weights, count, 0.0).to(device),
            mask=_window(part.mask, padded),
            logp_sampler=_window(part.logp_sampler, padded),
            advantages=_window(part.advantages, padded),
            lags=_window(part.lags, padded),
            older_kv=_window(part.older_kv, padded),
            logp_reference=None if part.logp_reference is None else _window(part.logp_reference, padded),
        )


@dataclass(frozen=True)
class StepResult:
    """What one train step did, on this rank."""

    applied: int
    """Updates that changed the weights; 0 means that the policy is what it was."""
    skipped: int
    """Updates that no rank applied, because a gradient was infinite or undefined."""
    tally: Tally
    logp_start: Array
    """[N] log-probs of this rank's tokens at the start of the step; empty unless asked for."""


def train_step(
    engine: Engine,
    share: Share,
    algorithm: BoundAlgorithm,
    section: LearnerSection,
    keep_logprobs: bool = False,
    alive: Callable[[], None] = lambda: None,
) -> StepResult:
    """Every epoch and mini-batch of one step, on this rank's share. Collective: all ranks call it together. `alive` is
    called before every micro-batch and update."""
    micro = [[MicroBatch.of(share.batch, r, engine.device) for r in mini] for mini in share.mini_batches]
    # With a single update π is still π_prox when it is used; otherwise π_prox is computed once, before any update.
    proximal = _proximal(engine, micro, alive) if share.updates > 1 or keep_logprobs else None
    tally = Tally()
    applied = skipped = 0
    for order in share.epochs:
        for mini in order:
            for place, part in enumerate(micro[mini]):
                alive()
                prox = proximal[mini][place] if proximal is not None else None
                loss = micro_loss(engine, part, prox, algorithm, tally)
                engine.backward(loss, last=place == len(micro[mini]) - 1)
            alive()
            rate = learning_rate(section.learning_rate, section.schedule, engine.updates)
            update = engine.step(rate)
            applied, skipped = applied + update.applied, skipped + (not update.applied)
            if update.applied:
                tally.add_number("actor/grad_norm", update.grad_norm)
                tally.add_number("actor/lr", rate)
    kept = _by_row(share, proximal, micro) if keep_logprobs and proximal is not None else np.zeros(0, np.float32)
    return StepResult(applied, skipped, tally, kept)


def micro_loss(
    engine: Engine, part: MicroBatch, logp_prox: Tensor | None, algorithm: BoundAlgorithm, tally: Tally
) -> Float[Tensor, ""]:
    """This micro-batch's part of the loss of its mini-batch."""
    mask = part.mask
    logp, entropy = window_logprobs(engine, part.rows, part.temperatures, algorithm.entropy_coefficient > 0)
    prox = logp.detach() if logp_prox is None else logp_prox
    made = compose(
        algorithm, logp, prox, part.logp_sampler, part.logp_reference, part.advantages, mask, part.weights, entropy
    )
    observe(tally, part, mask, made.keep, logp.detach(), prox, entropy.detach(), made.facts)
    tally.add_number("actor/pg_loss", made.policy.detach())
    tally.add_number("actor/loss", made.loss.detach())
    return made.loss


def _proximal(engine: Engine, micro: list[list[MicroBatch]], alive: Callable[[], None]) -> list[list[Tensor]]:
    """log π_prox of every micro-batch, before the first update."""

    def logprobs(part: MicroBatch) -> Tensor:
        alive()
        return window_logprobs(engine, part.rows, part.temperatures)[0]

    with torch.no_grad():
        return [[logprobs(part) for part in mini] for mini in micro]


def _by_row(share: Share, proximal: list[list[Tensor]], micro: list[list[MicroBatch]]) -> Array:
    """The proximal log-probs in the order of the share's rows."""
    per_row: list[Array] = [np.zeros(0, np.float32)] * len(share.batch)
    for plan, values, parts in zip(share.mini_batches, proximal, micro, strict=True):
        for rows, logp, part in zip(plan, values, parts, strict=True):
            for i, row in enumerate(rows):
                per_row[row] = logp[i][part.rows.responses[i]].float().cpu().numpy()
    return np.concatenate([*per_row, np.zeros(0, np.float32)])


def _filled(column: Array, count: int, value: float) -> Tensor:
    """A per-row column; one row of `value` where there are no rows."""
    return torch.from_numpy(column.copy()) if len(column) else torch.full((count,), value)


def _window(column: Array, rows: PaddedRows) -> Tensor:
    """A flat per-token column laid into the window; both run row by row."""
    values = torch.from_numpy(column.copy()).to(rows.responses.device)
    laid = torch.zeros(rows.responses.shape, dtype=values.dtype, device=values.device)
    laid[rows.responses] = values
    return laid
