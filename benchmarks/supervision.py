"""What a group costs the gate and the supervisor when there are 1, 10, 100 and 1,000 workers.

    python -m benchmarks.supervision [--times 5] [--only gate|supervisor]

The total rate of groups is the same for every number of workers, so that what grows with them shows: 500 groups a
second, which a thousand workers make when each needs two seconds for a group; a train step takes a second's groups.

gate        CPU time of a real Redis server, the run's private one with its append-only file, per group that is
            reserved, put, taken and applied; every tenth step is committed. Simulated workers are clients with a
            connection each. Their calls come one after the other, and every group is another worker's. `ask_us` and
            `look_us` are what one question of a worker that waits costs the server: for a place at a closed gate, which
            it asks once a second when it waits for long, and for new weights, four times a second.
supervisor  CPU time of the driver's process, Ray's own threads in it included, while the real supervisor ticks, on a
            real Ray cluster, with a run directory and the private server. The workers that answer it are simulated,
            hundreds of them in one Ray actor, and so is the learner, which reports steps at the set rate.

Prints one JSON line: the median of five measurements for each number of workers. `flat` is the largest over the
smallest.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.supervision_driver import Driver
from benchmarks.supervision_gate import Gate

WORKERS = (1, 10, 100, 1000)
RATE = 500.0
"""Groups per second of all workers together."""
GROUPS = 500
"""Per train step."""


def medians(workers: list[int], times: int, measure: Callable[[int], dict[str, float]]) -> dict[int, dict[str, float]]:
    """Of `times` measurements for each number of workers; they take turns, so that a slow minute meets them all."""
    found: dict[int, list[dict[str, float]]] = {count: [] for count in workers}
    for _ in range(times):
        for count in workers:
            found[count].append(measure(count))
    return {
        count: {name: round(statistics.median(each[name] for each in several), 1) for name in several[0]}
        for count, several in found.items()
    }


def flatness(values: list[float]) -> float:
    """The largest over the smallest."""
    return round(max(values) / min(values), 3)


def main() -> None:
    """Both, one after the other."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="train steps of one measurement of the gate")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement of the supervisor")
    parser.add_argument("--only", choices=["gate", "supervisor"])
    args = parser.parse_args()
    kept = measuring.Line("supervision", groups_per_second=RATE, groups_per_step=GROUPS)
    line: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        if args.only != "supervisor":
            with Gate(Path(folder)) as gate:
                line["gate"] = medians(args.workers, args.times, lambda n: gate.measure(n, GROUPS, args.steps))
        if args.only != "gate":
            driver = Driver(Path(folder), RATE, GROUPS)
            with driver:
                line["supervisor"] = medians(args.workers, args.times, lambda n: driver.measure(n, args.seconds))
    parts = {
        name: {n: found["us_per_group"] for n, found in line[name].items()}
        for name in ("gate", "supervisor")
        if name in line
    }
    if len(parts) == 2:
        parts["both"] = {n: round(sum(part[n] for part in parts.values()), 1) for n in args.workers}
    line["us_per_group"] = parts
    line["flat"] = {name: flatness(list(part.values())) for name, part in parts.items()}
    kept.end(line, args.keep)


if __name__ == "__main__":
    main()
