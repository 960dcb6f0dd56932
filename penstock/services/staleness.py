"""How old is a token? Pure arithmetic on versions and lineages; no clock, no store.

Versions form a tree. Lineage 0 begins at step 0; a lineage that forked from version `(p, s)` begins
at step `s` with the very weights of `(p, s)` and counts on from there:

    lineage 0   0 ─ 1 ─ … ─ 40 ─ 41 ─ 42      (41 and 42 are a lost future)
                             └─ 41 ─ 42 ─ 43   lineage 1, forked at (0, 40)

The lag between two versions is their distance in that tree: down from the one to the last common
ancestor, up to the other. On a single lineage this is the difference of the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penstock.services.trajectory import Span
from penstock.services.versions import Version

Forks = Mapping[int, Version]
"""For every lineage but 0 the version it forked from."""

Outlived = Literal["drop", "mask", "cut"]
"""What becomes of an answer that outlives `max_lag` while it is still being generated: the group is
dropped at `take`; or its tokens beyond the bound are masked out of the loss; or the answer is cut short at
the weight swap and judged as it is."""


def _path(version: Version, forks: Forks) -> dict[int, int]:
    """Lineages from `version` down to the root, with the last step of each that lies on the way."""
    path = {version.lineage: version.step}
    lineage = version.lineage
    while lineage in forks:
        lineage, step = forks[lineage]
        path[lineage] = step
    return path


def common_step(now: Version, lineage: int, forks: Forks) -> int:
    """The last step that `now` shares with any version of `lineage`.

    For a sampled version `(lineage, k)` the common ancestor is at step `min(common_step, k)`; the store's
    scripts receive these numbers, so that the tree is walked in one place only.
    """
    ours = _path(now, forks)
    theirs = _path(Version(lineage, np.iinfo(np.int64).max), forks)
    for shared, step in ours.items():
        if shared in theirs:
            return int(min(step, theirs[shared]))
    raise ValueError(f"lineage {lineage} and version {now} have no common ancestor; known forks: {dict(forks)}")


def lag(now: Version, sampled: Version, forks: Forks) -> int:
    """Train steps that lie between the weights that sampled and the weights of `now`."""
    ancestor = min(common_step(now, sampled.lineage, forks), sampled.step)
    return (now.step - ancestor) + (sampled.step - ancestor)


def token_lags(spans: Sequence[Span], now: Version, forks: Forks) -> NDArray[np.int32]:
    """Lag of every token, [T], in the order of the spans."""
    lags = [lag(now, span.version, forks) for span in spans]
    return np.repeat(np.asarray(lags, dtype=np.int32), [span.count for span in spans])


def stalest(spans: Iterable[Span], now: Version, forks: Forks) -> Version:
    """The version among `spans` with the largest lag. Raises ValueError when there are no spans."""
    return max((span.version for span in spans), key=lambda version: lag(now, version, forks))


def freshest(spans: Iterable[Span], now: Version, forks: Forks) -> Version:
    """The version among `spans` with the smallest lag. Raises ValueError when there are no spans."""
    return min((span.version for span in spans), key=lambda version: lag(now, version, forks))


def binding_version(spans: Iterable[Span], now: Version, forks: Forks, outlived: Outlived) -> Version:
    """The version whose lag decides whether a group may still be trained on.

    Where tokens beyond the bound are masked, one fresh token is enough to keep a group; otherwise its
    stalest token counts.
    """
    return freshest(spans, now, forks) if outlived == "mask" else stalest(spans, now, forks)


def capacity(behind: int, max_lag: int, groups_per_step: int) -> int:
    """How many groups may be outstanding before a worker that lags by `behind` must wait.

    A group that starts when `n` groups are outstanding is consumed after at most `n // groups_per_step`
    further steps, so a worker that lags by `d` may only join a queue that is `d` steps shorter.
    """
    return max(0, max_lag + 1 - behind) * groups_per_step


def admits(outstanding: int, behind: int, max_lag: int, groups_per_step: int) -> bool:
    """The staleness gate: True when one more group may start at a worker that lags by `behind`."""
    return outstanding < capacity(behind, max_lag, groups_per_step)
