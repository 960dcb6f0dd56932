"""Whole groups to a batch: rewards become advantages, lags and masks are laid beside every token. On rank 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from penstock.learner.algorithms.advantages import has_signal
from penstock.learner.algorithms.bound import BoundAlgorithm
from penstock.learner.batch import Array, Batch
from penstock.services import staleness
from penstock.services.contracts import PenstockError
from penstock.services.staleness import Forks
from penstock.services.trajectory import Group, Trajectory
from penstock.services.versions import Version


@dataclass(frozen=True)
class Moment:
    """When a batch is consumed, as far as staleness is concerned."""

    now: Version
    """The weights that the train step starts from."""
    forks: Forks
    max_lag: int
    mask_beyond: bool
    """Leave tokens out of the loss that lag more than max_lag (`outlived: mask`)."""


def signal_in(group: Group) -> bool:
    """Whether the scored members of a group differ in task reward."""
    rewards, scored = _rewards(group)
    return has_signal(rewards, scored)


def assemble(groups: Sequence[Group], algorithm: BoundAlgorithm, moment: Moment) -> Batch:
    """A batch of all responses that have a token to train on. Weights are still 0; see `deal.weigh`.

    Raises PenstockError when the algorithm needs reference log-probs and a scored response has none.
    """
    rows: dict[str, list[Array]] = {name: [] for name in _COLUMNS}
    sizes: dict[str, list[float]] = {name: [] for name in _PER_ROW}
    with_reference = all(t.reference_logprobs is not None for g in groups for t in g.scored)
    if not with_reference and (algorithm.penalty is not None or algorithm.reward_kl > 0):
        missing = [g.prompt.index for g in groups if any(t.reference_logprobs is None for t in g.scored)]
        raise PenstockError(
            f"the KL penalty needs reference log-probs, but prompts {missing[:8]} came without; "
            "give the run a reference model, or set algorithm.kl.coefficient to 0"
        )
    for group in groups:
        advantages = _advantages(group, algorithm)
        for member, trajectory in enumerate(group.trajectories):
            completion = trajectory.completion
            lags = staleness.token_lags(completion.spans, moment.now, moment.forks)
            mask = completion.actions & (trajectory.reward is not None)
            if moment.mask_beyond:
                mask = mask & (lags <= moment.max_lag)
            if not mask.any():
                continue
            count = len(completion.tokens)
            older = [s.older_kv for s in completion.spans]
            rows["prompt_tokens"].append(group.prompt.tokens)
            rows["tokens"].append(completion.tokens)
            rows["mask"].append(mask)
            rows["logp_sampler"].append(completion.logprobs)
            rows["advantages"].append(np.full(count, advantages[member], np.float32))
            rows["lags"].append(lags)
            rows["older_kv"].append(np.repeat(np.asarray(older, np.bool_), [s.count for s in completion.spans]))
            if with_reference and trajectory.reference_logprobs is not None:
                rows["logp_reference"].append(trajectory.reference_logprobs)
            for name, value in zip(
                _PER_ROW,
                (len(group.prompt.tokens), count, group.sampling.temperature, group.prompt.index, member),
                strict=True,
            ):
                sizes[name].append(value)
    return _columns(rows, sizes, with_reference)


_COLUMNS = {
    "prompt_tokens": np.int32,
    "tokens": np.int32,
    "mask": np.bool_,
    "logp_sampler": np.float32,
    "advantages": np.float32,
    "lags": np.int32,
    "older_kv": np.bool_,
    "logp_reference": np.float32,
}
_PER_ROW = {
    "prompt_lengths": np.int64,
    "lengths": np.int64,
    "temperatures": np.float32,
    "groups": np.int64,
    "members": np.int64,
}


def _columns(rows: dict[str, list[Array]], sizes: dict[str, list[float]], with_reference: bool) -> Batch:
    columns: dict[str, Array] = {
        name: np.concatenate([*rows[name], np.zeros(0, dtype)]).astype(dtype) for name, dtype in _COLUMNS.items()
    }
    columns |= {name: np.asarray(sizes[name], dtype) for name, dtype in _PER_ROW.items()}
    if not with_reference:
        del columns["logp_reference"]
    return Batch(**columns, weights=np.zeros(len(sizes["lengths"]), np.float64))


def _rewards(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """Task rewards [members] in float64, 0 where unscored, and which members are scored."""
    values = [t.reward for t in group.trajectories]
    rewards = torch.tensor([0.0 if v is None else v for v in values], dtype=torch.float64)
    return rewards, torch.tensor([v is not None for v in values])


def _advantages(group: Group, algorithm: BoundAlgorithm) -> Array:
    """[members]; on the task reward, less the KL where the algorithm places it there."""
    rewards, scored = _rewards(group)
    if not has_signal(rewards, scored):
        # Decided before the KL is taken off: it differs in every answer, and a z-score would blow that up.
        return np.zeros(len(rewards))
    if algorithm.reward_kl > 0:
        distances = [_sampled_kl(t) if t.reward is not None else 0.0 for t in group.trajectories]
        rewards = rewards - algorithm.reward_kl * torch.tensor(distances, dtype=torch.float64)
    return algorithm.baseline(rewards, scored).numpy()


def _sampled_kl(trajectory: Trajectory) -> float:
    """Σ log(μ/π_ref) over the actions of a response: k1 of KL(μ‖π_ref) for the whole response."""
    completion, reference = trajectory.completion, trajectory.reference_logprobs
    assert reference is not None, "checked in assemble"
    difference = np.where(completion.actions, completion.logprobs - reference, 0.0)
    return float(difference.sum(dtype=np.float64))
