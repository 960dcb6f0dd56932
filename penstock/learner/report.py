"""What a step tells people: rewards and lengths of all groups it saw, and a few trajectories to read."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penstock.learner.assemble import drawn_from_known, signal_in
from penstock.learner.batch import Batch
from penstock.learner.feed import Fed
from penstock.learner.metrics import REFUSED
from penstock.services.trajectory import Group, Trajectory
from penstock.services.versions import Version

REASONS = ("stale", "no_signal", "unscored", "damaged", "nonfinite")
"""Why the learner drops groups; reported at every step, also when there were none."""
SOLVED_AT = 1.0
"""An answer with at least this reward counts as solved."""


def group_metrics(fed: Fed) -> dict[str, float]:
    """Over all groups the step looked at. Those without signal belong here too: a batch chosen for its spread of
    rewards says nothing about how good the policy is."""
    seen = fed.groups + fed.passed_over
    answers = [t for group in seen for t in group.trajectories]
    scored = [t for t in answers if t.reward is not None]
    rewards = np.asarray([t.task_reward for t in scored], np.float64)
    lengths = np.asarray([len(t.completion.tokens) for t in answers], np.float64)
    metrics = {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        "reward/solved": float((rewards >= SOLVED_AT).mean()),
        "reward/unscored": 1 - len(scored) / len(answers),
        "reward/with_signal": sum(signal_in(group) for group in seen) / len(seen),
        "response/length_mean": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/clipped": _share(answers, "length"),
        "response/cut_stale": _share(answers, "stale"),
    }
    names = sorted({name for t in scored for name in t.parts})
    for name in names:
        values = [value for t in scored if (value := t.parts.get(name)) is not None]
        if values:
            metrics[f"reward/part/{name}"] = float(np.mean(values))
    return metrics


def batch_metrics(batch: Batch, groups: Sequence[Group]) -> dict[str, float]:
    """Sizes of the batch that was trained on, and what of its groups could not be. Advantages from values are not
    known here: the train step reports them in their place."""
    scored = [t.completion for group in groups for t in group.scored]
    return {
        "batch/unknown_mask": float(sum((c.actions & ~drawn_from_known(c)).sum() for c in scored)),
        "batch/groups": float(len(np.unique(batch.groups))),
        "batch/answers": float(len(batch)),
        "batch/tokens": float(batch.lengths.sum()),
        "batch/tokens_in_loss": float(batch.mask.sum()),
        "batch/advantage_max": float(np.abs(batch.advantages).max(initial=0.0)),
    }


def dropped_metrics(dropped: Mapping[str, int]) -> dict[str, float]:
    """Groups dropped by reason; the reasons that are always there are reported at 0 too."""
    return _by_reason("dropped", dropped, REASONS)


def refused_metrics(refused: Mapping[str, int]) -> dict[str, float]:
    """The same of those that the rollout workers dropped, which the learner never saw."""
    return _by_reason("refused", refused, REFUSED)


def _by_reason(group: str, counts: Mapping[str, int], usual: Sequence[str]) -> dict[str, float]:
    """The `usual` reasons also where there were none."""
    return {f"{group}/{reason}": float(counts.get(reason, 0)) for reason in {*usual, *counts}}


def time_metrics(batch: Batch, busy: float, seconds: float) -> dict[str, float]:
    """Of a step of `seconds`, `busy` of them in forward and backward."""
    return {
        "time/step": seconds,
        "learner/tokens_per_second": float(batch.lengths.sum()) / seconds,
        "learner/busy": busy / seconds,
    }


def step(
    version: Version, fed: Fed, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The event of a step that ended in `version`, with some of its answers to read."""
    return {
        "kind": "step",
        "version": str(version),
        "lineage": version.lineage,
        "step": version.step,
        "at": time.time(),
        "metrics": finite(metrics),
        "samples": list(samples),
        "damage": fed.damage,
    }


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Only what is a number; JSON has no word for the rest."""
    return {name: float(value) for name, value in sorted(metrics.items()) if math.isfinite(value)}


def _share(answers: list[Trajectory], finish: str) -> float:
    return sum(t.completion.finish == finish for t in answers) / len(answers)
