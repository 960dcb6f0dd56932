"""Does every algorithm learn? Whole runs of the carry recipe, one per row of the table and seed, from the same models.

    python -m benchmarks.learning [--rows ppo grpo …] [--seeds 0 1 2] [--draw-only]

Two rollout workers, max_lag 2, everything else as in recipes/carry/grpo.yaml but for what ROWS says. Runs that are
there already are not made again. Writes docs/learning.png and the table in docs/learning.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.carry import HERE, RUNS, demo, inputs_of
from benchmarks.tables import between_marks, figure
from penstock.services.metrics import read_rows
from penstock.services.rundir import RunDir

PAGE, PICTURE = HERE / "docs/learning.md", HERE / "docs/learning.png"
GOAL = 0.9
SAMPLED, GREEDY = "eval/sampled/accuracy", "eval/greedy/accuracy"

ROWS: dict[str, tuple[str, ...]] = {
    # The value model starts from nothing: it learns faster than the policy, and a few steps before it.
    "ppo": ("algorithm.value.learning_rate=1e-3", "algorithm.value.warmup_steps=5"),
    "grpo": (),
    "dapo": (),
    "gspo": (),
    "cispo": (),
    "rloo": (),
    "reinforce_pp": (),
    # Keeps groups without signal: the more of them the policy solves, the less a step teaches.
    "kimi": ("limits.steps=80",),
    "decoupled_ppo": (),
}
"""Overrides by row: only what the row itself asks for."""


def measure(row: str, seed: int, steps: int, book: Path) -> None:
    """One run, unless the book has it."""
    runs, key = read_book(book), key_of(row, seed, steps)
    if key in runs:
        return
    model, data = inputs_of(seed)
    run = demo().trained(seed, data.parent, model, RUNS, overrides_of(row, steps))
    book.write_text(json.dumps(runs | {key: str(run.dir)}, indent=1) + "\n")


def overrides_of(row: str, steps: int) -> list[str]:
    """What a run of this row changes in the recipe."""
    return [f"algorithm.name={row}", f"limits.steps={steps}", "limits.minutes=null", "goals=[]", *ROWS[row]]


def key_of(row: str, seed: int, steps: int) -> str:
    """Names a run in the book by all that decides what it does, so that other settings make another run."""
    recipe = (HERE / "recipes/carry/grpo.yaml").read_text()
    settings = hashlib.sha256(repr([recipe, overrides_of(row, steps)]).encode()).hexdigest()[:8]
    return f"{row} {seed} {settings}"


def read_book(book: Path) -> dict[str, str]:
    """Run directories by row and seed."""
    found: dict[str, str] = json.loads(book.read_text()) if book.exists() else {}
    return {key: folder for key, folder in found.items() if Path(folder).is_dir()}


def curve(folder: str, metric: str) -> tuple[list[float], list[float]]:
    """Where the metric was measured in a run, and what."""
    kept = [row for row in read_rows(RunDir.open(Path(folder)).metrics) if metric in row]
    return [row["step"] for row in kept], [row[metric] for row in kept]


def table_rows(folders_of: dict[str, list[str]]) -> Iterator[list[str]]:
    """Per row: sampled and greedy accuracy before and after, first evaluation at the goal, steps, mean lag."""
    for row, folders in folders_of.items():
        sampled, greedy = [curve(f, SAMPLED) for f in folders], [curve(f, GREEDY) for f in folders]
        reached = [next((f"{x:.0f}" for x, y in zip(*c, strict=True) if y >= GOAL), "—") for c in sampled]
        summaries: list[dict[str, Any]] = [RunDir.open(Path(f)).read_summary() or {} for f in folders]
        yield [
            f"`{row}`",
            _spread([ys[0] for _, ys in sampled]),
            _spread([ys[-1] for _, ys in sampled]),
            _spread([ys[0] for _, ys in greedy]),
            _spread([ys[-1] for _, ys in greedy]),
            ", ".join(reached),
            f"{summaries[0]['steps']}",
            f"{statistics.mean(s['lag']['mean'] for s in summaries):.2f}",
        ]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    """Measure what is missing, then draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--book", type=Path, default=RUNS / "learning.json")
    parser.add_argument("--draw-only", action="store_true")
    args = parser.parse_args()
    if not args.draw_only:
        for seed in args.seeds:
            for row in args.rows:
                measure(row, seed, args.steps, args.book)
    book = read_book(args.book)
    folders = {row: [book[key_of(row, seed, args.steps)] for seed in args.seeds] for row in args.rows}
    head = ["row", "sampled, before", "after", "greedy, before", "after", f"step at {GOAL}, per seed"]
    between_marks(PAGE, "table", [*head, "steps", "mean lag"], table_rows(folders))
    panels = {
        row: {"sampled": [curve(f, SAMPLED) for f in mine], "greedy": [curve(f, GREEDY) for f in mine]}
        for row, mine in folders.items()
    }
    figure(PICTURE, panels, x="train step", y="held-out accuracy")
    print(PICTURE)


if __name__ == "__main__":
    main()
