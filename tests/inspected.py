"""A run directory made by hand whose answers can be inspected: numbers simple enough to work out in one's head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import msgspec
import numpy as np

from penstock.services.run_paths import step_name
from penstock.services.rundir import RunDir
from penstock.services.samples import (
    ACTION,
    CLIPPED_HIGH,
    COUNTS,
    LEFT_OUT,
    WEIGHT_CUT,
    SpanRecord,
    TokenRecord,
    stretches,
)
from penstock.services.versions import Version

TEXTS = ("4", "2", " <b>bold</b>", "\n", "", "é", " = ", "7", "[eos]")
"""One that reads like HTML, a line break, and a character in two parts."""


def sample(texts: tuple[str, ...] | None = TEXTS, at_most: int = 512, **changes: Any) -> dict[str, Any]:
    """An answer of nine tokens that saw a swap after four: sampler −0.5 everywhere, learner 0.1 more per place, and so
    again every nine tokens of a longer one."""
    length = 9 if texts is None else len(texts)
    place = np.arange(length)
    apart = 0.1 * (place % 9 - 4)
    marks = np.full(length, ACTION | COUNTS)
    marks[1] |= LEFT_OUT
    marks[2] |= WEIGHT_CUT
    marks[3] |= CLIPPED_HIGH
    marks[0] = ACTION
    columns = {
        "tokens": 100 + place,
        "marks": marks,
        "logp_sampler": np.full(length, -0.5),
        "logp_learner": -0.5 + apart,
        "advantages": np.where(place < 6, 1.0, -0.25),
        "token_rewards": (place == length - 1).astype(float),
        "trust_weights": np.minimum(np.exp(apart), 1.25),
    }
    record = TokenRecord(
        length=length,
        begins_at="0.11",
        spans=[
            SpanRecord(version="0.9", count=4, lag=2),
            SpanRecord(version="0.11", count=length - 4, lag=0, older_kv=True),
        ],
        stretches=stretches(columns, None if texts is None else lambda ids: [texts[i - 100] for i in ids], at_most),
        missing={"logp_reference": "the run has no reference model"},
    )
    plain = {
        "prompt_index": 40,
        "member": 3,
        "source": "sums",
        "prompt": "What is <i>6 × 7</i>?",
        "answer": "".join(texts or ()),
        "reward": 1.0,
        "parts": {"exact": 1.0, "brief": None},
        "steps": [],
        "unscored": None,
        "finish": "stop",
        "tokens": length,
        "logprob_mean": -0.5,
        "versions": ["0.9:4", f"0.11:{length - 4}"],
        "worker": "rollout-1",
        "seconds": 0.5,
        "by_token": msgspec.to_builtins(record),
    }
    return plain | changes


def text_alone(**changes: Any) -> dict[str, Any]:
    """As a run recorded it that keeps no numbers."""
    whole = sample(**changes)
    del whole["by_token"]
    return whole


def long_answer(length: int, at_most: int) -> dict[str, Any]:
    """Words of four digits; one swap, after the first four."""
    return sample(tuple(f"{i % 10000:04d} " for i in range(length)), at_most)


def run_dir(folder: Path, steps: tuple[int, ...] = (4, 8, 12), name: str = "sums") -> RunDir:
    """A run with two answers in each of `steps`."""
    directory = RunDir.create(folder / "runs", name, f"name: {name}\nmodel: {{path: nowhere}}\n")
    for step in steps:
        directory.write_samples(
            Version(0, step), [sample(), text_alone(reward=None, unscored="it hung", finish="length")]
        )
    return directory


def archive_step(directory: RunDir, version: Version, **algorithm: Any) -> None:
    """Two answers to prompt 7, of two and of three tokens; the second saw a swap after its first token."""
    batch = builders.batch_of(
        5,
        2,
        prompt_tokens=np.asarray([1, 2, 1, 2], np.int32),
        prompt_lengths=np.asarray([2, 2]),
        tokens=np.asarray([5, 6, 7, 8, 9], np.int32),
        lengths=np.asarray([2, 3]),
        groups=np.asarray([7, 7]),
        members=np.asarray([0, 2]),
        rewards=np.asarray([1.0, 0.25]),
        truncated=np.asarray([False, True]),
        mask=np.asarray([True, True, True, False, True]),
        logp_sampler=np.asarray([-1, -1, -1, -2, -1], np.float32),
        logp_learner=np.asarray([-1, -0.75, -1, -2, -1.5], np.float32),
        advantages=np.asarray([1, 1, -1, -1, -1], np.float32),
        lags=np.asarray([1, 1, 2, 1, 1], np.int32),
        sampled_steps=np.asarray([3, 3, 2, 3, 3], np.int32),
        older_kv=np.asarray([False, False, False, True, True]),
    )
    facts = {
        "moment": {
            "now": str(Version(version.lineage, version.step - 1)),
            "forks": {},
            "max_lag": 2,
            "mask_beyond": False,
        },
        "algorithm": {"value": {"kind": "none"}, "whitening": {"over": "none"}} | algorithm,
    }
    folder = directory.archive / step_name(version)
    folder.mkdir()
    directory.archived_batch(version).write_bytes(batch.to_bytes(version=str(version), **facts))
