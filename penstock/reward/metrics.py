"""What the reward side measures: of one batch of trajectories, and of the scorer itself."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from penstock.services.metrics import Metric
from penstock.services.trajectory import Trajectory

METRICS: dict[str, Metric] = {
    "reward/mean": Metric("Mean reward of the scored answers", good="up"),
    "reward/std": Metric("Standard deviation of the scored answers' rewards over the batch", estimator="n − 1"),
    "reward/accuracy": Metric("Share of judged answers whose accuracy part reaches correct_at", good="up"),
    "reward/unscored": Metric("Share of answers that no reward could be given to", good="down"),
    "reward/part/{name}": Metric("Mean of one part of the reward, unweighted, where it gave a value"),
    "scorer/groups": Metric("Groups judged since the scorer started"),
    "scorer/seconds": Metric("Mean time from handing a group in to having it judged", "s", "down"),
    "scorer/restarts": Metric("Rule processes replaced since the scorer started", good="down"),
    "scorer/failed/{part}": Metric("Answers that one part could not judge since the scorer started", good="down"),
    "scorer/reference_tokens_per_second": Metric("Tokens per second through the reference model", "1/s", "up"),
}


def summarise(trajectories: Iterable[Trajectory], accuracy: str, correct_at: float) -> dict[str, float]:
    """Reward, accuracy and parts of a batch; what has no scored member is left out, not made zero.

    `accuracy` is the part that says whether an answer is correct, which it is from `correct_at` on.
    """
    members = list(trajectories)
    if not members:
        return {}
    rewards = [t.reward for t in members if t.reward is not None]
    values: dict[str, float] = {"reward/unscored": 1 - len(rewards) / len(members)}
    if rewards:
        values["reward/mean"] = float(np.mean(rewards))
    if len(rewards) > 1:
        values["reward/std"] = float(np.std(rewards, ddof=1))
    parts: dict[str, list[float]] = {}
    for trajectory in members:
        for name, value in trajectory.parts.items():
            if value is not None:
                parts.setdefault(name, []).append(value)
    values |= {f"reward/part/{name}": float(np.mean(found)) for name, found in parts.items()}
    if accuracy in parts:
        values["reward/accuracy"] = float(np.mean([value >= correct_at for value in parts[accuracy]]))
    return values
