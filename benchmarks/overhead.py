"""When nobody works: `python -m benchmarks.overhead [RUN_DIR] [--minutes 2.5]`.

Runs the carry demo (seed 0, two workers), or reads a run that is there. From the first answer's first token on, until
the run's last event, out of the phases that every actor has written into `activity.jsonl`:

    nobody   the share of the time in which no engine generates or loads weights and the learner does nothing but wait:
             the goal is 0.05
    strict   the same where only generating and training themselves count, and not swaps, publishing and checkpoints
    cause    of `nobody`: from the last actor's end on (Ray ends, plots are drawn), while all workers wait for the gate,
             and the rest
    idle     by role, the mean share in which its actors had nothing to do: a worker without an answer to generate, a
             learner without groups; a scorer without a group, as seen at the end of every step
    phases   by role, the share of every phase, as a mean over its actors

`longest` are the longest stretches in which nobody works, with the seconds since the beginning and what the actors were
in. `memory` is what all processes took at most (`peak_memory_bytes` of the summary). Prints one JSON line.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

import penstock
from benchmarks.carry import HERE, inputs_of
from benchmarks.measuring import Line, parser
from penstock.services.lanes import Line as Lanes
from penstock.services.lanes import Span
from penstock.services.rundir import RunDir

GOAL = 0.05
MEMORY_GOAL = 12e9
GENERATING, TRAINING, SWAPPING = "generating", "training", "swapping weights"
WAITS = ("waiting", "paused", "starting", "ended", "ready", "meeting", "draining")
"""How the phases begin in which an actor does nothing."""
Interval = tuple[float, float]


def run_demo(minutes: float, folder: Path) -> Path:
    """The run's directory."""
    model, data = inputs_of(0)
    files = {"data.sources.sums.path": "train.jsonl", "evaluation.data.sources.heldout.path": "heldout.jsonl"}
    where = [f"{key}={data / name}" for key, name in files.items()]
    limits = [f"limits.minutes={minutes}", "dashboard.enabled=true", "dashboard.port=0", f"runs_dir={folder}"]
    return penstock.train(HERE / "recipes" / "carry" / "grpo.yaml", [f"model.path={model}", *where, *limits]).dir


def spans_of(run: RunDir) -> dict[str, list[Span]]:
    """By actor, oldest first."""
    found: dict[str, list[Span]] = defaultdict(list)
    for path in (run.activity_before, run.activity):
        if path.exists():
            for line in path.read_bytes().splitlines():
                for name, spans in msgspec.json.decode(line, type=Lanes).lanes.items():
                    found[name] += spans
    return found


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time in intervals that do not touch, in order."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def gaps(worked: list[Interval], begin: float, end: float) -> list[Interval]:
    """What of [begin, end] is in no interval."""
    edges = [begin, *(edge for interval in worked for edge in interval), end]
    found = [(max(a, begin), min(b, end)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return [(a, b) for a, b in found if b > a]


def works(phase: str) -> bool:
    """Whether an actor in this phase does something."""
    return not phase.startswith(WAITS)


def measure(run: RunDir) -> dict[str, Any]:
    """The shares."""
    lanes = spans_of(run)
    first = min(span.begin for spans in lanes.values() for span in spans if span.phase == GENERATING)
    last = max(event.at for event in run.read_events())

    def idle_time(engine: tuple[str, ...], counts: Callable[[str], bool]) -> list[Interval]:
        every = ((name, span) for name, spans in lanes.items() for span in spans)
        busy = [(s.begin, s.end) for name, s in every if _engine(name, s, engine) or _learns(name, s, counts)]
        return gaps(union(busy), first, last)

    whole, nobody = last - first, idle_time((GENERATING, SWAPPING), works)
    strict = idle_time((GENERATING,), lambda phase: phase == TRAINING)
    ended = max(span.end for spans in lanes.values() for span in spans)
    at_end = _total((max(a, ended), b) for a, b in nobody if b > ended)
    gate = _total((a, b) for a, b in nobody if b <= ended and _all_at_gate(lanes, (a + b) / 2))
    causes = {"end": at_end, "gate": gate, "rest": _total(nobody) - at_end - gate}
    shares = {name: phases_of(spans, first, last) for name, spans in lanes.items()}
    roles: dict[str, list[dict[str, float]]] = defaultdict(list)
    for name, each in shares.items():
        roles[name.rpartition("-")[0]].append(each)
    idle = {role: statistics.mean(_idle(each) for each in several) for role, several in roles.items()}
    longest = sorted(nobody, key=lambda gap: gap[0] - gap[1])[:5]
    peaks = (run.read_summary() or {}).get("peak_memory_bytes", {})
    return {
        "seconds": round(whole, 1),
        "nobody": round(_total(nobody) / whole, 4),
        "strict": round(_total(strict) / whole, 4),
        "cause": {name: round(seconds / whole, 4) for name, seconds in causes.items()},
        "idle": {role: round(share, 4) for role, share in (idle | scorer_idle(run)).items()},
        "phases": {role: _mean_of(several) for role, several in roles.items()},
        "longest": [
            {"at": round(a - first, 2), "seconds": round(b - a, 2), "in": _phases_at(lanes, (a + b) / 2)}
            for a, b in longest
        ],
        "memory": {name: round(size / 2**20) for name, size in peaks.items()},
        "memory_sum_gb": round(sum(peaks.values()) / 1e9, 2),
    }


def scorer_idle(run: RunDir) -> dict[str, float]:
    """Scorers have no lanes: the share of the steps at whose end none had a group in its hands."""
    rows = penstock.open_run(run.path).metrics
    if "scorer/in_hand" not in rows:
        return {}
    in_hand = rows["scorer/in_hand"].dropna()
    return {"scorer": float((in_hand == 0).mean())} if len(in_hand) else {}


def phases_of(spans: list[Span], begin: float, end: float) -> dict[str, float]:
    """Share of the time by phase."""
    found: dict[str, float] = defaultdict(float)
    for span in spans:
        found[span.phase] += max(0.0, min(span.end, end) - max(span.begin, begin)) / (end - begin)
    return {phase: share for phase, share in found.items() if share > 0}


def _engine(name: str, span: Span, phases: tuple[str, ...]) -> bool:
    return name.startswith("rollout") and span.phase in phases


def _all_at_gate(lanes: dict[str, list[Span]], at: float) -> bool:
    found = [phase for name, phase in _phases_at(lanes, at).items() if name.startswith("rollout")]
    return all(phase.startswith("waiting: ") for phase in found)


def _learns(name: str, span: Span, counts: Callable[[str], bool]) -> bool:
    return name.startswith("learner") and counts(span.phase)


def _idle(phases: dict[str, float]) -> float:
    """A worker has nothing to do unless it generates or swaps; what no span covers is idle, too."""
    return 1 - sum(share for phase, share in phases.items() if works(phase))


def _mean_of(several: list[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for each in several for name in each})
    return {name: round(sum(each.get(name, 0.0) for each in several) / len(several), 4) for name in names}


def _phases_at(lanes: dict[str, list[Span]], at: float) -> dict[str, str]:
    return {name: next((s.phase for s in spans if s.begin <= at < s.end), "-") for name, spans in lanes.items()}


def _total(intervals: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)


def main() -> None:
    """Measure and print the line."""
    options = parser(__doc__)
    options.add_argument("run", nargs="?", type=Path, help="a run directory; by default the demo is run")
    options.add_argument("--minutes", type=float, default=5.5, help="limit of the demo's training")
    options.add_argument("--folder", type=Path, default=Path("runs"), help="where the demo's run goes")
    args = options.parse_args()
    line = Line("overhead", goal=GOAL)
    directory = args.run or run_demo(args.minutes, args.folder.resolve())
    found = measure(RunDir.open(directory))
    print(directory, file=sys.stderr)
    fits = found["memory_sum_gb"] <= MEMORY_GOAL / 1e9
    line.end({**found, "met": found["nobody"] <= GOAL, "memory_met": fits}, args.keep)


if __name__ == "__main__":
    main()
