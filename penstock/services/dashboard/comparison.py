"""Two runs side by side: what differs in their run files, what came of them, any metric of both over steps, tokens or
seconds. The page and `penstock compare` show the same."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.services.dashboard.answers import NotRecorded
from penstock.services.dashboard.buckets import reduce, width_for
from penstock.services.dashboard.history import History
from penstock.services.rundir import RunDir

Over = Literal["steps", "tokens", "seconds"]
TOKENS, SECONDS = "learner/tokens", "time/step"
"""Metrics: tokens trained on since the run began; seconds of one step, waits included."""
RECENT = 20
"""Steps at the end whose mean says where a run has come to."""
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A key of the run file that the two runs do not have alike."""

    key: str
    a: Any
    b: Any
    only: Literal["a", "b"] | None = None
    """The one run that has the key at all."""


@dataclass(frozen=True)
class Figure:
    """One line of the comparison."""

    group: str
    name: str
    unit: str
    a: float | str | None
    b: float | str | None
    """None where a run has none."""


@dataclass(frozen=True)
class Comparison:
    """Two runs, as far as they have come."""

    a: str
    b: str
    """Names of the run directories."""
    differences: list[Difference]
    figures: list[Figure]
    metrics: list[str]
    """Those that both have recorded."""


@dataclass(frozen=True)
class Curve:
    """A metric of one run in at most so many points, each the mean of its stretch of steps."""

    label: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Curves:
    """One metric of both runs."""

    metric: str
    over: Over
    series: list[Curve]


class Side(NamedTuple):
    """A run and its metrics."""

    directory: RunDir
    history: History

    @classmethod
    def read(cls, directory: RunDir) -> Side:
        """All that has been written by now. Raises MetricError for damage."""
        side = cls(directory, History(directory.metrics))
        side.follow()
        return side

    def follow(self) -> None:
        """Read what was added."""
        while self.history.follow():
            pass

    @property
    def name(self) -> str:
        return self.directory.path.name


# --- what is compared ------------------------------------------------------------------------------


def compare(a: Side, b: Side) -> Comparison:
    """Everything but the curves. Raises RunDirError for a run directory that is damaged."""
    facts = [_facts(side) for side in (a, b)]
    order = list(dict.fromkeys(key for found in facts for key, value in found.items() if value is not None))
    order.sort(key=lambda key: _GROUPS.index(key[0]))
    figures = [Figure(*key, *(found.get(key) for found in facts)) for key in order]
    differences = differing(a.directory.read_config(), b.directory.read_config())
    both = sorted(set(a.history.names) & set(b.history.names))
    return Comparison(a.name, b.name, differences, figures, both)


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """Keys with another value, or that only one of two run files has, in the order of the files."""
    one, other = dict(_leaves(a, "")), dict(_leaves(b, ""))
    found = []
    for key in dict.fromkeys((*one, *other)):
        if key not in one or key not in other:
            found.append(Difference(key, one.get(key), other.get(key), "a" if key in one else "b"))
        elif one[key] != other[key]:
            found.append(Difference(key, one[key], other[key]))
    return found


def curves(sides: Sequence[Side], metric: str, over: Over = "steps", points: int = 600) -> Curves:
    """A metric of every run. Raises NotRecorded where none of them has it."""
    names = sorted({name for side in sides for name in side.history.names})
    if metric not in names:
        near = difflib.get_close_matches(metric, names, n=1, cutoff=0.4)
        hint = f"; nearest: {near[0]}" if near else ""
        raise NotRecorded(f"no metric {metric!r} in {' or '.join(side.name for side in sides)}{hint}")
    return Curves(metric, over, [_curve(side, metric, over, points) for side in sides])


def _curve(side: Side, metric: str, over: Over, points: int) -> Curve:
    steps, (values, tokens, seconds) = side.history.table((metric, TOKENS, SECONDS))
    along = {"steps": steps.astype(np.float64), "tokens": tokens, "seconds": np.nancumsum(seconds)}[over]
    known = np.isfinite(values) & np.isfinite(along)
    if not known.any():
        return Curve(side.name, [], [])
    steps, pair = steps[known], np.stack([along[known], values[known]])
    found = reduce(steps, pair, width_for(int(steps[0]), int(steps[-1]), points))
    return Curve(side.name, found.mean[0].tolist(), found.mean[1].tolist())


# --- figures of one run ----------------------------------------------------------------------------

_GROUPS = ("run", "speed", "lag", "learning", "evaluation", "accidents")
Facts = dict[tuple[str, str, str], float | str | None]
"""(group, name, unit) → value."""


def _facts(side: Side) -> Facts:
    return {
        **_progress(side),
        **_speed_and_lag(side.history),
        **_learning(side.history),
        **_evaluation(side.history),
        **_accidents(side.directory),
    }


def state_of(directory: RunDir) -> str:
    """How a run ended, or what it was doing when it was last heard of."""
    summary, status = directory.read_summary() or {}, directory.read_status() or {}
    if "outcome" in summary:
        return str(summary["outcome"])
    phase = status.get("phase", "never started")
    return str(phase) if directory.locked or not status else f"died while {phase}"


def _progress(side: Side) -> Facts:
    steps, (tokens, seconds) = side.history.table((TOKENS, SECONDS))
    return {
        ("run", "state", ""): state_of(side.directory),
        ("run", "steps", ""): float(steps[-1]) if len(steps) else 0.0,
        ("run", "tokens trained on", ""): _of(np.max, tokens),
        ("run", "training", "s"): _of(np.sum, seconds),
    }


def _speed_and_lag(history: History) -> Facts:
    def of(name: str, reduction: Callable[[Values], Any] = np.mean) -> float | None:
        return _of(reduction, history.table((name,))[1][0])

    dropped = [name for name in history.names if name.startswith("dropped/")]
    return {
        ("speed", "one step", "s"): of(SECONDS),
        ("speed", "of that, waiting for groups", "s"): of("time/wait"),
        ("speed", "learner", "tok/s"): of("learner/tokens_per_second"),
        ("speed", "rollout", "tok/s"): of("rollout/tokens_per_second"),
        ("lag", "mean", "steps"): of("off_policy/mean"),
        ("lag", "largest", "steps"): of("off_policy/max", np.max),
        **{("lag", f"groups dropped, {name.removeprefix('dropped/')}", ""): of(name, np.sum) for name in dropped},
    }


def _learning(history: History) -> Facts:
    names = [name for name in _WHERE if name in history.names]
    return {
        ("learning", f"{name}, last {RECENT} steps", unit): _of(np.mean, history.table((name,))[1][0][-RECENT:])
        for name, unit in _WHERE.items()
        if name in names
    }


_WHERE = {
    "reward/mean": "",
    "kl/reference": "nat",
    "kl/offpolicy": "nat",
    "rollout_corr/ess": "",
    "actor/entropy": "nat",
}
"""Metrics that say where a run has come to, and their units."""


def _evaluation(history: History) -> Facts:
    found: Facts = {}
    for name in history.names:
        if name.startswith("eval/"):
            values = history.table((name,))[1][0]
            known = values[np.isfinite(values)]
            found["evaluation", f"{name}, first", ""] = _of(np.mean, known[:1])
            found["evaluation", f"{name}, last", ""] = _of(np.mean, known[-1:])
    return found


def _accidents(directory: RunDir) -> Facts:
    """Deaths by actor, resumes, roll backs, guards, warnings. A death is told once, and what follows from it again."""
    events = directory.read_events()
    died = Counter(str(event.facts.get("name", "")) for event in events if event.kind == "died")
    again = Counter(str(event.facts.get("name", "")) for event in events if event.kind == "restarted")
    deaths = died | Counter({name: count for name, count in again.items() if name not in died})
    kinds = Counter(event.kind for event in events)
    exhausted = sum(event.kind == "guard" and event.facts.get("what") == "exhausted" for event in events)
    return {
        ("accidents", "deaths", ""): float(deaths.total()),
        **{("accidents", f"deaths of {name}", ""): float(count) for name, count in sorted(deaths.items())},
        ("accidents", "resumed", "times"): float(max(0, kinds["published"] - 1)),
        ("accidents", "rolled back", "times"): float(kinds["rolled_back"]),
        ("accidents", "guards fired", "times"): float(kinds["guard"] - exhausted),
        ("accidents", "warnings", ""): float(kinds["warning"]),
    }


def _of(reduction: Callable[[Values], Any], values: Values) -> float | None:
    """Of what is a number, to seven digits, which is what metrics are kept to; None without any."""
    known = values[np.isfinite(values)]
    return float(f"{reduction(known):.7g}") if len(known) else None


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; an empty section or list is a value."""
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            yield from _leaves(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and value:
        for place, below in enumerate(value):
            yield from _leaves(below, f"{key}.{place}")
    else:
        yield key, value
