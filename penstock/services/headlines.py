"""The few numbers that people look at first, by the names under which the roles record them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Headline(NamedTuple):
    """One number of the display."""

    label: str
    names: tuple[str, ...]
    """Metric names; the first one that was recorded is shown."""
    format: str = ".3f"
    unit: str = ""


HEADLINES = (
    Headline("reward", ("reward/mean",)),
    Headline("solved", ("reward/solved",)),
    Headline("accuracy", ("eval/sampled/accuracy",)),
    Headline("greedy", ("eval/greedy/accuracy",)),
    Headline("lag", ("off_policy/mean",), ".2f"),
    Headline("max lag", ("off_policy/max",), ".0f"),
    # Never `kl` alone: how far from the reference, and how far the learner is from what sampled the batch.
    Headline("kl/reference", ("kl/reference",), ".2e", "nat"),
    Headline("kl/offpolicy", ("kl/offpolicy",), ".2e", "nat"),
    # How much of a batch the weights leave: the first to fall when staleness hurts.
    Headline("ess", ("rollout_corr/ess",), ".3f"),
    Headline("entropy", ("actor/entropy",), ".3f", "nat"),
    Headline("rollout", ("rollout/tokens_per_second",), "count", "tok/s"),
    Headline("learner", ("learner/tokens_per_second",), "count", "tok/s"),
)


def count(value: float) -> str:
    """A large number as people read it: 812, 4.1k, 2.3M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.1f}{suffix}"
    return f"{value:.0f}"


def shown(headline: Headline, metrics: Mapping[str, float]) -> str | None:
    """The newest value with its unit; None when nothing was recorded yet."""
    value = next((metrics[name] for name in headline.names if name in metrics), None)
    if value is None:
        return None
    text = count(value) if headline.format == "count" else format(value, headline.format)
    return f"{text} {headline.unit}".rstrip()
