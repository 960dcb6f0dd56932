"""Does the autoscaler find the right number of workers? `python -m benchmarks.autoscaler [--folder runs/autoscaler]`.

A drill on the real actors: workers that sample at a set pace, and a learner that could keep two of them busy. It begins
with one, and somebody asks for five later on. One JSON line: what learner and workers were able to do, measured in the
same run; the numbers that follow from that; the number it settled at, how long that took, and every change.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.drills import RECIPE, Onlooker, inputs_in, played
from penstock.api import Run
from penstock.rollout.config import AutoscaleSection
from penstock.services.control import Scale, Stop
from penstock.services.metrics import read_rows

RULES = AutoscaleSection(min=1, max=6, up_after=15, down_after=20, again=300, hold=5)
LIMIT = 90.0
"""Seconds from the start of training in which the right number must have begun to work: three steps of a learner that
waits, the start of a worker, and as much again where one more was not enough."""
WATCHED = 45.0
"""Seconds in which nothing may change after that."""
TOO_MANY = 5
GROUPS, PACE, SECONDS = 8, 80.0, 2.5
"""Groups of a step; tokens per second of one worker, which makes a step's groups of them in about five seconds; what
the learner sleeps in a step beside its work."""
OVERRIDES = (
    "name=autoscaler",
    "rollout.max_workers=6",
    f"learner.groups_per_step={GROUPS}",
    f"engine.paced.tokens_per_second={PACE}",
    "rollout.max_groups=3",
    "algorithm.name=slow_learner:SLOW",
    f"algorithm.objective.seconds={SECONDS}",
    "limits.steps=100000",
    "checkpoints.every=1000",
    "recording.samples=0",
    "recording.plots=false",
    *(f"rollout.autoscale.{name}={value}" for name, value in RULES.model_dump().items()),
)


def measured(folder: Path) -> dict[str, Any]:
    """The line."""
    times: dict[str, float] = {}

    def play(onlooker: Onlooker) -> None:
        onlooker.wait("it has scaled up", lambda: changes(onlooker.directory.read_events()), LIMIT)
        _quiet(onlooker, WATCHED)
        times["many"] = time.time()
        onlooker.control.send(Scale("rollout", TOO_MANY), "benchmark")
        onlooker.joined(f"rollout-{TOO_MANY - 1}")
        _quiet(onlooker, RULES.down_after + WATCHED)
        onlooker.control.send(Stop("measured"), "benchmark")

    run = played(RECIPE / "drill.yaml", [*inputs_in(folder), *OVERRIDES], play)
    return summary(run, times["many"])


def _quiet(onlooker: Onlooker, seconds: float) -> None:
    """Until the autoscaler has changed nothing for so long."""

    def still() -> bool:
        found = changes(onlooker.directory.read_events())
        return time.time() - (found[-1][0] if found else 0.0) > seconds

    began = time.time()
    onlooker.wait("it changes nothing any more", lambda: still() and time.time() - began > seconds, 600.0)


def changes(events: Any) -> list[tuple[float, int]]:
    """Unix seconds and number, of everything the autoscaler has asked for and got."""
    steered = [event for event in events if event.kind == "steered" and event.facts["by"] == "autoscaler"]
    return [(event.at, event.facts["asked"]["count"]) for event in steered]


def summary(run: Run, many: float) -> dict[str, Any]:
    """What the run's own record says; `many` is when somebody asked for five."""
    began = next(event.at for event in run.events if event.kind == "training")
    rows = [row for row in read_rows(run.dir / "metrics.jsonl") if "rollout/waiting_seconds" in row]
    made = changes(run.events)
    first = [row for row in rows if row["time"] < made[0][0]]
    # A worker's pace is over the time in which it had something to do; a learner's over that in which it did not wait.
    busy = (
        first[-1]["time"]
        - first[0]["time"]
        - (first[-1]["rollout/waiting_seconds"] - first[0]["rollout/waiting_seconds"])
    )
    worker = (first[-1]["rollout/groups_put"] - first[0]["rollout/groups_put"]) / busy
    learner = GROUPS * len(rows) / sum(row["time/step"] - row["time/wait"] for row in rows)
    ratio = learner / worker
    fewest, most = math.ceil(ratio * (1 - RULES.up_wait)), math.ceil(ratio / (1 - RULES.down_idle))
    up, down = [c for c in made if c[0] < many], [c for c in made if c[0] > many]
    useful = [event.at for event in run.events if event.kind == "delivered" and up[-1][0] < event.at < many]
    settled = max(useful) - began
    return {
        "benchmark": "autoscaler",
        "worker_groups_per_second": round(worker, 2),
        "learner_groups_per_second": round(learner, 2),
        "right": sorted({fewest, most}),
        "settled_at": up[-1][1],
        "seconds_to_settle": round(settled, 1),
        "limit_seconds": LIMIT,
        "changes": [[round(at - began, 1), count] for at, count in up],
        "from_five": [[round(at - many, 1), count] for at, count in down],
        "met": settled <= LIMIT
        and fewest <= up[-1][1] <= most
        and [count for _, count in up] == sorted({count for _, count in up})
        and bool(down)
        and fewest <= down[-1][1] <= most
        and [count for _, count in down] == sorted({count for _, count in down}, reverse=True),
    }


def main() -> None:
    """Measure once and print the line."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/autoscaler"), help="where the run and its inputs go")
    args = parser.parse_args()
    line = measuring.Line("autoscaler")
    line.end(measured(args.folder.resolve()), args.keep)


if __name__ == "__main__":
    main()
