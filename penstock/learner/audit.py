"""The exact parts of the log-ratio between policy and sampler, measured on a sample of answers. On rank 0.

    log π_after − log μ =  [log π_after − log π_prox]          update: what the step has changed
                         + [log π_prox − log π_train(v)]       staleness: v is the version that sampled the token
                         + [log π_train(v) − log μ]            mismatch: two engines, same weights

Every log-prob of the policy comes from one implementation: the learner's own forward pass, on a copy of the model
into which the published weights of the versions concerned are loaded one after the other. What the parts sum to
is compared with what the train step itself has measured: `audit/residual`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penstock.learner.algorithms.ranges import LIMIT
from penstock.learner.batch import Batch
from penstock.learner.config import AuditSection
from penstock.learner.diagnostics import BUCKETS, bucket_of, in_bucket
from penstock.learner.forward import policy_pass
from penstock.learner.micro import MicroBatch
from penstock.services.contracts import WeightReceiver
from penstock.services.logprobs import plan_micro_batches
from penstock.services.models import load_weights
from penstock.services.versions import Version
from penstock.services.weights.files import WeightsMissing

Doubles = NDArray[np.float64]
Weights = Mapping[str, torch.Tensor]
PARTS = {"update": "kl/update_audited", "staleness": "kl/staleness", "mismatch": "kl/mismatch"}
"""The brackets, and the metric of each one's divergence."""


class Auditor:
    """Measures the steps that `audit.every` asks for. `load` makes the scratch model, a LogprobModel, at the first."""

    def __init__(
        self,
        section: AuditSection,
        receiver: WeightReceiver,
        load: Callable[[], Any],
        device: torch.device,
        token_budget: int,
        seed: int = 0,
    ) -> None:
        self._section, self._receiver, self._load = section, receiver, load
        self._device, self._budget, self._seed = device, token_budget, seed
        self._model: Any = None
        self._alive: Callable[[str], None] = lambda _: None

    @staticmethod
    def keeps(max_lag: int) -> int:
        """How many published versions there must be at a time: the one that a step has just made, the one that it
        started from, and those before it that its groups may come from."""
        return max_lag + 2

    def due(self, version: Version) -> bool:
        """Whether the step that ends in `version` is to be audited."""
        return self._section.every > 0 and version.step % self._section.every == 0

    def examine(
        self, batch: Batch, start: Version, after: Weights, alive: Callable[[str], None] = lambda _: None
    ) -> dict[str, float]:
        """Metrics of the step from `start` that has led to the weights `after`; `batch` has the learner's own log-probs
        at its start. Tokens of versions that are gone are left out and counted. `alive` is called at every micro-batch.
        """
        began, self._alive = time.monotonic(), alive
        random = np.random.default_rng([self._seed, start.step])
        able = np.flatnonzero(batch.counts > 0)
        chosen = np.sort(random.choice(able, min(self._section.sequences, len(able)), replace=False))
        part = batch.select(chosen.tolist())
        with self._scratch():
            metrics = split(part, *self._logprobs(part, start, after))
        return metrics | {"audit/sequences": float(len(part)), "audit/seconds": time.monotonic() - began}

    def _logprobs(self, part: Batch, start: Version, after: Weights) -> tuple[Doubles, Doubles, Doubles]:
        """[N] each, in doubles: under the weights after the step, at its start, and those that sampled the token; NaN
        where these are gone."""
        everywhere = np.ones(len(part.tokens), np.bool_)
        updated = self._under(after, part, everywhere)
        prox = self._under_version(start, part, everywhere)
        trained = np.full(len(part.tokens), np.nan)
        counted = np.stack([part.sampled_lineages, part.sampled_steps])[:, part.mask]
        for lineage, step in np.unique(counted, axis=1).T.tolist():
            mine = (part.sampled_lineages == lineage) & (part.sampled_steps == step)
            version = Version(lineage, step)
            trained[mine] = (prox if version == start else self._under_version(version, part, mine))[mine]
        return updated, prox, trained

    def _under_version(self, version: Version, part: Batch, where: NDArray[np.bool_]) -> Doubles:
        try:
            with self._receiver.fetch(version) as weights:
                return self._under(weights, part, where)
        except WeightsMissing:
            return np.full(len(part.tokens), np.nan)

    def _under(self, weights: Weights, part: Batch, where: NDArray[np.bool_]) -> Doubles:
        """Log-probs of the tokens `where`, in whose rows all are computed; 0 in other rows."""
        load_weights(self._model.model, weights)
        rows = [row for row, mine in enumerate(part.split(where)) if mine.any()]
        tokens = part.row_tokens.tolist()
        per_row = [np.zeros(length) for length in part.lengths.tolist()]
        for plan in plan_micro_batches([tokens[row] for row in rows], self._budget):
            self._alive("auditing")
            micro = MicroBatch.of(part, [rows[i] for i in plan], self._device)
            with torch.no_grad():
                logp = policy_pass(self._model, micro).logp
            for i, values, mine in zip(plan, logp.double().cpu(), micro.rows.responses.cpu(), strict=True):
                per_row[rows[i]] = values[mine].numpy()
        return np.concatenate(per_row)

    @contextmanager
    def _scratch(self) -> Iterator[None]:
        """The model on the device while it is needed, in main memory otherwise."""
        if self._model is None:
            self._alive("loading the model for audits")
            self._model = self._load().eval()
        self._model.to(self._device)
        try:
            yield
        finally:
            self._model.to("cpu")


def split(part: Batch, updated: Doubles, prox: Doubles, trained: Doubles) -> dict[str, float]:
    """Metrics of the three brackets over the tokens that count. `updated`, `prox`, `trained`: log-probs [N] in doubles
    after the step, at its start and under the weights that sampled each token (NaN where they are gone)."""
    sampler = part.logp_sampler.astype(np.float64)
    known = part.mask & np.isfinite(trained) & np.isfinite(prox)
    spread = np.ptp(np.where(known, np.stack([updated, prox, trained, sampler]), 0.0), axis=0)
    near = known & ~(spread > LIMIT)
    metrics = {
        "audit/tokens": float(near.sum()),
        "audit/missing": float((part.mask & ~known).sum()),
        "audit/out_of_range": float((known & ~near).sum()),
    }
    if not near.any():
        return metrics
    brackets = {
        "update": (updated - prox)[near],
        "staleness": (prox - trained)[near],
        "mismatch": (trained - sampler)[near],
    }
    assert part.logp_learner is not None, "kept where a step is audited"
    measured = part.logp_learner.astype(np.float64)[near] - sampler[near]
    metrics["audit/residual"] = float(np.abs(brackets["staleness"] + brackets["mismatch"] - measured).max())
    buckets = bucket_of(torch.from_numpy(part.lags[near]), torch.from_numpy(part.older_kv[near])).numpy()
    for name, bracket in brackets.items():
        # log of the later over the earlier policy, on tokens of the earlier: KL(earlier‖later).
        k1, k3, head = -bracket, np.expm1(bracket) - bracket, PARTS[name]
        metrics |= {head: k3.mean(), f"{head}/k1": k1.mean(), f"audit/{name}_mean": np.abs(bracket).mean()}
        for place in np.unique(buckets):
            metrics[in_bucket(f"{head}/k3", BUCKETS[place])] = k3[buckets == place].mean()
    return {name: float(value) for name, value in metrics.items()}
