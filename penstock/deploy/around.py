"""What workers and scorers say of themselves, added up over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from penstock.deploy.fleet import Member

ACCOUNT = ("sampled", "resumed", "put", "handed_back", "dropped")
"""What becomes of tokens at a worker, as parts of the names `rollout/tokens_…`. What it has sampled or resumed it puts,
hands back or drops; an evaluation's answers are sampled only."""
_AVERAGED = ("_seconds", "_share")
_LARGEST = ("rollout/swap/gap",)


def worker_metrics(members: Iterable[Member]) -> dict[str, float]:
    """Of the rollout workers that run: counts and rates added up, times and shares as means, gaps as the largest."""
    stats = [member.stats for member in members if member.state == "running"]
    metrics: dict[str, float] = {"rollout/workers": float(len(stats))}
    for name in _names(stats, "rollout/"):
        values = [float(each[name]) for each in stats if name in each]
        if name in _LARGEST:
            metrics[name] = max(values)
        else:
            metrics[name] = sum(values) / (len(values) if name.endswith(_AVERAGED) else 1)
    return metrics


def scorer_metrics(members: Iterable[Member]) -> dict[str, float]:
    """Of the scorers that run: counts and rates added up, the time of a group as a mean over all groups."""
    stats = [member.stats for member in members if member.state == "running"]
    metrics: dict[str, float] = {"scorer/scorers": float(len(stats))}
    for name in _names(stats, "scorer/"):
        weights = [float(each["scorer/groups"]) if name.endswith(_AVERAGED) else 1.0 for each in stats if name in each]
        values = [float(each[name]) for each in stats if name in each]
        total = sum(weight * value for weight, value in zip(weights, values, strict=True))
        metrics[name] = total / max(1.0, sum(weights)) if name.endswith(_AVERAGED) else total
    return metrics


def token_account(members: Iterable[Member]) -> dict[str, int]:
    """What became of all tokens, by ACCOUNT, at all workers of this start in all their lives. What a process had not
    said yet when it was killed is not known."""
    lives = [life for member in members if member.role == "rollout" for life in (*member.past, member.stats)]
    return {part: int(sum(life.get(f"rollout/tokens_{part}", 0.0) for life in lives)) for part in ACCOUNT}


def _names(stats: Sequence[Mapping[str, Any]], prefix: str) -> list[str]:
    names: set[str] = set().union(*stats)
    return sorted(name for name in names if name.startswith(prefix))
