"""Small records for tests; every argument has a default that fits the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from penstock.learner.batch import Batch
from penstock.services.trajectory import Completion, Group, Prompt, Sampling, Span, Trajectory
from penstock.services.versions import FIRST, Version


def prompt(index: int = 0, tokens: Sequence[int] = (1, 2, 3), **columns: Any) -> Prompt:
    return Prompt(
        index=index,
        source="test",
        row=index,
        epoch=0,
        tokens=np.asarray(tokens, np.int32),
        text="".join(map(str, tokens)),
        columns=columns,
    )


def spans(*pieces: tuple[Version, int]) -> tuple[Span, ...]:
    return tuple(Span(lineage=v.lineage, step=v.step, count=n) for v, n in pieces)


def completion(
    tokens: Sequence[int] = (4, 5), logprobs: Sequence[float] | None = None, version: Version = FIRST, **changes: Any
) -> Completion:
    count = len(tokens)
    fields: dict[str, Any] = {
        "tokens": np.asarray(tokens, np.int32),
        "logprobs": np.asarray([-0.5] * count if logprobs is None else logprobs, np.float32),
        "actions": np.ones(count, np.bool_),
        "spans": spans((version, count)),
        "finish": "stop",
        "text": "".join(map(str, tokens)),
        "worker": "worker-0",
        "engine": "test",
        "started": 1.0,
        "ended": 2.0,
    }
    return Completion(**(fields | changes))


def trajectory(reward: float | None = 1.0, **changes: Any) -> Trajectory:
    return Trajectory(
        completion=completion(**changes),
        reward=reward,
        parts={"exact": reward},
        unscored=None if reward is not None else "reward 'exact': timed out after 5.0 s",
    )


def group(index: int = 0, rewards: Sequence[float | None] = (0.0, 1.0), version: Version = FIRST) -> Group:
    return Group(
        prompt=prompt(index),
        sampling=Sampling(max_tokens=8),
        trajectories=tuple(trajectory(reward, version=version) for reward in rewards),
    )


def batch_of(count: int, rows: int, **columns: Any) -> Batch:
    """A batch of `count` tokens in so many rows: the given columns, and for the rest what means nothing."""
    plain = {
        "temperatures": np.ones(rows, np.float32),
        "groups": np.arange(rows),
        "members": np.zeros(rows, np.int64),
        "rewards": np.zeros(rows),
        "truncated": np.zeros(rows, np.bool_),
        "weights": np.zeros(rows),
        "mask": np.ones(count, np.bool_),
        "token_rewards": np.zeros(count, np.float32),
        "advantages": np.zeros(count, np.float32),
        "lags": np.zeros(count, np.int32),
        "sampled_lineages": np.zeros(count, np.int32),
        "sampled_steps": np.zeros(count, np.int32),
        "older_kv": np.zeros(count, np.bool_),
    }
    return Batch(**(plain | columns))


def one_answer(**columns: Any) -> Batch:
    """A prompt of one token and an answer of two; further `columns` as given."""
    own = {
        "prompt_tokens": np.ones(1, np.int32),
        "prompt_lengths": np.array([1]),
        "tokens": np.ones(2, np.int32),
        "lengths": np.array([2]),
        "logp_sampler": np.zeros(2, np.float32),
    }
    return batch_of(2, 1, **(own | columns))
