"""Facts about a step that are reported whatever the algorithm, for all tokens and for each bucket of lag.

Every token that counts falls into exactly one bucket: by its lag, or, when it was decoded on a cache that older
weights had written in part, into `older_kv`, whatever its lag. So what `lag_0` measures is mismatch alone: the same
weights on both sides, and what differs is the arithmetic of two engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from penstock.learner.algorithms.bound import STEP_KL
from penstock.learner.algorithms.objectives import Facts, log_ratio
from penstock.learner.algorithms.ranges import within_range
from penstock.learner.tally import Tally, Totals

if TYPE_CHECKING:
    from penstock.learner.micro import MicroBatch

BUCKETS = ("lag_0", "lag_1", "lag_2", "lag_3_4", "lag_5_8", "lag_9_up", "older_kv")
_LOWEST = (1, 2, 3, 5, 9)
"""Smallest lag of every bucket but the first."""
_OLDER = len(BUCKETS) - 1
_NONE = len(BUCKETS)
_SUMS, _HIGHEST = "_sums", "_highest"
_PER_BUCKET = (
    "kl/offpolicy/k1",
    "kl/offpolicy/k3",
    "kl/update/k1",
    "kl/update/k3",
    "rollout_corr/mean",
    "rollout_corr/second_moment",
)
"""Means over the tokens within range."""
_OVERALL = ("actor/entropy", "kl/reference")
"""The same, over all buckets only."""


def bucket_of(lags: Int[Tensor, "*any"], older_kv: Bool[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """The place in BUCKETS of every token."""
    by_lag = torch.bucketize(lags, torch.tensor(_LOWEST, device=lags.device), right=True)
    return by_lag.masked_fill(older_kv, _OLDER)


def observe(
    tally: Tally,
    part: MicroBatch,
    mask: Bool[Tensor, "rows window"],
    keep: Bool[Tensor, "rows window"],
    logp: Float[Tensor, "rows window"],
    prox: Float[Tensor, "rows window"],
    entropy: Float[Tensor, "rows window"],
    facts: Facts,
) -> None:
    """Add the facts of one micro-batch. `mask`: tokens that count and are within range; `keep`: those of them that the
    loss is a sum over; what stands elsewhere, NaN included, has no effect. Nothing here carries a gradient."""
    counted, zero = part.mask, prox.new_zeros((), dtype=torch.float64)
    # Doubles: the weights of a few far-off tokens must not overflow their squares.
    apart = log_ratio(prox, part.logp_sampler, mask).double()
    moved = log_ratio(logp, prox, mask).double()
    grown = apart.expm1()
    weights = torch.where(mask, grown + 1, zero)
    columns = {
        "tokens": counted,
        "within": mask,
        "left_out": counted & ~keep,
        "lag": part.lags,
        "apart": apart.abs(),
        "kl/offpolicy/k1": -apart,
        "kl/offpolicy/k3": grown - apart,
        "kl/update/k1": -moved,
        "kl/update/k3": moved.expm1() - moved,
        "rollout_corr/mean": weights,
        "rollout_corr/second_moment": weights.square(),
        "actor/entropy": torch.where(mask, entropy, 0.0),
    }
    if part.logp_reference is not None:
        behind = log_ratio(part.logp_reference, logp, mask).double()
        columns["kl/reference"] = behind.expm1() - behind
    columns |= {f"fact {name}": torch.where(counted, values, 0.0) for name, values in facts.items()}
    bucket = torch.where(counted, bucket_of(part.lags, part.older_kv), _NONE).reshape(-1)
    # One product instead of a sum per bucket and fact: [buckets, tokens] × [tokens, columns].
    stacked = torch.stack([column.reshape(-1).double() for column in columns.values()], dim=1)
    member = bucket == torch.arange(len(BUCKETS), device=bucket.device).unsqueeze(1)
    tally.add_table(_SUMS, tuple(columns), member.double() @ stacked)
    within, nothing = mask.reshape(-1), torch.full((), -torch.inf, dtype=torch.float64, device=bucket.device)
    most = torch.stack([torch.where(within, x.reshape(-1), nothing) for x in (weights, apart.abs())])
    most = torch.cat([most, part.lags.reshape(1, -1).double()])
    found = nothing.expand(len(most), _NONE + 1).scatter_reduce(1, bucket.expand(len(most), -1), most, "amax")
    tally.highest_table(_HIGHEST, ("weight", "apart", "lag"), found[:, :_NONE].T)


def observe_step(tally: Tally, part: MicroBatch, logp: Float[Tensor, "rows window"]) -> None:
    """How far the whole step has moved the policy, which is at `logp` after its last update."""
    assert part.logp_prox is not None, "laid into it at the start"
    mask, _ = within_range(part.mask, logp, part.logp_prox)
    moved = log_ratio(logp, part.logp_prox, mask).double()
    tally.add(STEP_KL, moved.expm1() - moved, mask)


def step_metrics(totals: Totals, updates: int, passes: int = 1) -> dict[str, float]:
    """Means over the tokens that count, maxima, and the effective sample size (Σw)²/(n Σw²) of the raw weights, for all
    tokens and for every bucket that has any. The step made `updates` in `passes` over its batch."""
    metrics = totals.means() | totals.maxima()
    sums, highest = totals.table(_SUMS), totals.table(_HIGHEST)
    if sums and sums["tokens"].any():
        overall = {name: float(column.sum()) for name, column in sums.items()}
        largest = {name: float(column.max()) for name, column in highest.items()}
        metrics |= _overall(overall, largest) | _mismatch(sums, highest)
        metrics["off_policy/older_kv"] = float(sums["tokens"][_OLDER]) / overall["tokens"]
        for place in np.flatnonzero(sums["tokens"]):
            row = {name: float(column[place]) for name, column in sums.items()}
            found = _row(row, float(highest["weight"][place])) | {"off_policy/tokens": row["tokens"] / passes}
            metrics |= {in_bucket(name, BUCKETS[place]): value for name, value in found.items()}
    for name in {"actor/pg_loss", "actor/loss", "critic/loss"} & set(metrics):
        # Tallied once per micro-batch and rank; a loss is their sum, and a step's loss the mean over its updates.
        metrics[name] = totals.sum(name) / updates
    return metrics


def in_bucket(name: str, bucket: str) -> str:
    """The metric `name` over one bucket's tokens: `rollout_corr/ess` → `rollout_corr/lag_1/ess`."""
    head, _, last = name.rpartition("/")
    return f"{head}/{bucket}/{last}"


def _row(sums: dict[str, float], largest: float) -> dict[str, float]:
    """What is reported of a set of tokens, all or a bucket; `largest` is their largest weight."""
    facts = [name for name in sums if name.startswith("fact ")]
    found = {name.removeprefix("fact "): sums[name] / sums["tokens"] for name in facts}
    found["rollout_corr/left_out"] = sums["left_out"] / sums["tokens"]
    if sums["within"] > 0:
        found |= {name: sums[name] / sums["within"] for name in _PER_BUCKET}
        found["rollout_corr/max"] = largest
        squared = sums["rollout_corr/second_moment"]
        if squared > 0:
            found["rollout_corr/ess"] = sums["rollout_corr/mean"] ** 2 / (sums["within"] * squared)
    return found


def _overall(sums: dict[str, float], largest: dict[str, float]) -> dict[str, float]:
    """Of all tokens; there k3 is the divergence that goes without saying."""
    found = _row(sums, largest["weight"])
    found |= {name: sums[name] / sums["within"] for name in _OVERALL if name in sums and sums["within"] > 0}
    found = {name.removesuffix("/k3"): value for name, value in found.items()}
    return found | {"off_policy/mean": sums["lag"] / sums["tokens"], "off_policy/max": largest["lag"]}


def _mismatch(sums: dict[str, np.ndarray], highest: dict[str, np.ndarray]) -> dict[str, float]:
    """Of tokens of lag 0 with a clean cache: the same weights on both sides."""
    if sums["within"][0] == 0:
        return {}
    return {
        "mismatch/mean": float(sums["apart"][0] / sums["within"][0]),
        "mismatch/max": float(highest["apart"][0]),
    }
