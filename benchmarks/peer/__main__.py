"""Penstock and TRL's GRPOTrainer on the same cores, one after the other in one run:

    python -m benchmarks.peer [--seeds 0 1 2] [--tasks short long_tail] [--steps 12]

short      the carry demo from the same fine-tuned model, with the recipe's learning rate, warm-up and batch of 32
           groups of 8 on both sides: seconds from the first prompt until the mean reward of the answers sampled in the
           last three steps is .90. Groups without signal stay in on both sides: TRL has no such filter.
long_tail  answers of geometric length, 85 tokens in the mean, 500 at most, from a model whose every token ends the
           answer with probability 1/85; learning rate 1e-10 and no filter: trained response tokens per second, from the
           end of the second step to the end of the last.

Penstock compiles the learner's layers, when it starts; TRL would in the midst of its training, for longer than all of
that takes here, so it does not. It samples with transformers, its default, with as many threads as there are cores; it
is installed into an environment of its own under runs/. Start-up is left out on both sides and reported apart. Prints
one JSON line per task: the median over the seeds of either side, and of the ratio within a seed, more than 1 where
Penstock is ahead.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.carry import RUNS
from benchmarks.peer import ours, theirs
from benchmarks.peer.curve import Curve
from benchmarks.peer.tasks import Task, long_tail, short

GOAL = 0.90
"""Sampled accuracy."""
WARM = 2
"""Steps before the pace is taken."""
GOALS = {"short": 1.0, "long_tail": 7.0}


def measured(task: Task, curve: Curve) -> float | None:
    """What counts: seconds to the goal, or trained tokens per second."""
    return curve.reached(GOAL) if task.name == "short" else curve.pace(WARM)


def ahead(task: Task, mine: float | None, other: float | None) -> float | None:
    """How many times as good as the other; None where either did not get there."""
    if mine is None or other is None:
        return None
    return other / mine if task.name == "short" else mine / other


def middle(values: list[float | None]) -> float | None:
    """The median; a run that did not get there took longer than all others."""
    found = [value for value in values if value is not None]
    return round(statistics.median(found), 3) if len(found) == len(values) else None


def compare(name: str, seeds: list[int], steps: int, folder: Path, python: Path) -> dict[str, Any]:
    """One task, both sides in turn for every seed."""
    rows = []
    for seed in seeds:
        task = short(seed) if name == "short" else long_tail(seed, folder, steps)
        mine = ours.run(task, seed, folder / "penstock")
        other = theirs.run(task, seed, folder / f"trl-{name}-{seed}", python, os.cpu_count() or 1)
        ratio = ahead(task, measured(task, mine), measured(task, other))
        rows.append((mine, other, measured(task, mine), measured(task, other), ratio))
        print(f"{name}, seed {seed}: {rows[-1][2]} against {rows[-1][3]}", file=sys.stderr, flush=True)
    unit = "seconds_to_0.90" if name == "short" else "trained_tokens_per_second"
    return {
        "unit": unit,
        "penstock": middle([row[2] for row in rows]),
        "trl": middle([row[3] for row in rows]),
        "ratio": middle([row[4] for row in rows]),
        "steps": steps if name == "long_tail" else None,
        "ratios": [row[4] if row[4] is None else round(row[4], 3) for row in rows],
        "goal": GOALS[name],
        "startup": {
            "penstock": middle([row[0].startup for row in rows]),
            "trl": middle([row[1].startup for row in rows]),
        },
        "length": {"penstock": middle([row[0].length for row in rows]), "trl": middle([row[1].length for row in rows])},
        "accuracy": {
            side: middle([statistics.mean(row[place].accuracy[-3:]) for row in rows])
            for place, side in enumerate(("penstock", "trl"))
        },
    }


def main() -> None:
    """The tasks that were asked for."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--steps", type=int, default=12, help="of the long-tail task")
    args = parser.parse_args()
    python = theirs.environment(RUNS / "peer-env")
    with tempfile.TemporaryDirectory(prefix="penstock-peer-") as scratch:
        for name in args.tasks:
            line = measuring.Line("peer", task=name, seeds=args.seeds)
            line.end(compare(name, args.seeds, args.steps, Path(scratch), python), args.keep, name)


if __name__ == "__main__":
    main()
