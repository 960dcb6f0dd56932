"""What a page asks for once a second: what is new since it asked last, all in one answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from penstock.services.dashboard.chronicle import Entry
from penstock.services.dashboard.history import Look
from penstock.services.dashboard.watch import Watch
from penstock.services.lanes import Span

Facts = Callable[[], Mapping[str, Any]]
"""The facts of `penstock status --json`, as plain values."""


@dataclass(frozen=True)
class Wanted:
    """What the asker shows, and what it has already."""

    select: tuple[str, ...]
    """Names of metrics, `*` standing for any part of one."""
    buckets: int
    """At most so many points per curve."""
    revision: int | None
    width: int
    """Of the metrics it has."""
    between: tuple[int, int] | None
    """Only these steps."""
    events: int
    """The number of its newest event."""
    lanes_from: float
    """Unix seconds from which on it wants to know what the actors did; 0 for `lanes_span` seconds before the end."""
    lanes_span: float
    resolution: float
    """Seconds of one dot of a lane."""


@dataclass(frozen=True)
class Live:
    """The answer."""

    at: float
    """Unix seconds."""
    read_share: float
    """How much of the metrics has been read; below 1 the curves are made of evenly spaced steps."""
    damage: str
    """What is wrong with the run's files; empty when nothing is."""
    status: dict[str, Any]
    """`verdict`, and `facts` without the metrics and the summary."""
    metrics: Look
    steps: tuple[int, int]
    """The first and the newest step."""
    events: list[Entry]
    """Newer ones, oldest first."""
    lanes: dict[str, list[Span]]
    """By actor: phase, begin, end."""
    shares: dict[str, dict[str, float]]
    """By actor and phase, the seconds of the last `lanes_span` ones."""
    lanes_end: float
    """The latest moment of which is known what an actor did; that of a run that has ended is its end."""


def live(watch: Watch, facts: Facts, wanted: Wanted) -> Live:
    """Raises PenstockError when the run directory cannot be read."""
    since = None if wanted.revision is None else (wanted.revision, wanted.width)
    end = watch.activity.ends[1]
    begin = wanted.lanes_from or end - wanted.lanes_span
    history = watch.history
    told = Live(
        time.time(),
        round(watch.read_share, 3),
        watch.damage,
        brief(facts()),
        history.look(wanted.select, wanted.buckets, since, wanted.between),
        history.span,
        watch.chronicle.after(wanted.events),
        watch.activity.between(begin, end, wanted.resolution),
        watch.activity.shares(end - wanted.lanes_span, end),
        end,
    )
    watch.looked()
    return told


def brief(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts without what the page has from elsewhere."""
    found = dict(facts["facts"])
    found.pop("summary", None)
    if found.get("view") is not None:
        found["view"] = {name: value for name, value in found["view"].items() if name != "metrics"}
    return {"verdict": facts["verdict"], "facts": found}
