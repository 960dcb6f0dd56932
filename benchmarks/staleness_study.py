"""What staleness does by itself: forced lags × corrections at equal samples, several seeds, one figure and one table.

    python -m benchmarks.staleness_study [--seeds 0 1 2] [--lags 0 2 4 8 16] [--jobs 2] [--draw-only]

Every run is a process of `benchmarks.forced_lag` and leaves its lines in a folder of its settings under
runs/staleness-study/; runs that are there already are not made again. Writes docs/staleness-study.png and the tables
in docs/staleness-study.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.carry import inputs_of
from benchmarks.tables import between_marks, figure

HERE = Path(__file__).parent.parent
PAGE, PICTURE = HERE / "docs/staleness-study.md", HERE / "docs/staleness-study.png"

CORRECTIONS: dict[str, dict[str, Any]] = {
    "none": {"name": "grpo", "trust": {"kind": "none"}},
    "truncated IS": {"name": "grpo", "trust": {"kind": "truncated_is"}},
    "decoupled PPO": {"name": "grpo", "trust": {"kind": "decoupled"}},
    "CISPO": {"name": "cispo", "baseline": {"kind": "group_zscore"}, "reduction": {"kind": "sequence_mean"}},
}
"""All with GRPO's baseline and reduction, so that nothing but the treatment of staleness differs."""
COMMON = {"group_filter": "all", "quorum": 2}
"""Every step takes the same number of answers, whatever they are worth."""


@dataclass(frozen=True)
class Case:
    """One run of the study."""

    correction: str
    lag: int
    seed: int

    def file(self, folder: Path) -> Path:
        """Where its lines lie."""
        return folder / f"{self.correction.replace(' ', '-')}-lag-{self.lag}-seed-{self.seed}.jsonl"


def measure(case: Case, folder: Path, learner: dict[str, Any], steps: int) -> None:
    """Run one case unless its lines are complete already."""
    file = case.file(folder)
    if file.exists() and (lines := read(file)) and ("ended" in lines[-1] or lines[-1]["step"] == steps):
        return
    model, data = inputs_of(case.seed)
    command = [sys.executable, "-m", "benchmarks.forced_lag", str(model), str(data), "--lag", str(case.lag)]
    command += ["--seed", str(case.seed), "--steps", str(steps), "--learner", json.dumps(learner)]
    command += ["--algorithm", json.dumps(CORRECTIONS[case.correction] | COMMON)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=3600)
    if done.returncode != 0:
        raise SystemExit(f"{case} failed:\n{done.stderr[-2000:]}")
    file.write_text("".join(line + "\n" for line in done.stdout.splitlines() if line.startswith("{")))
    print(f"{case.correction}, lag {case.lag}, seed {case.seed}: {measured(read(file))[-1]['sampled']:.3f}", flush=True)


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of one case; a run whose gradient broke down ends with a line that says so and has no accuracy."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def rows(folder: Path, lags: Sequence[int], seeds: Sequence[int]) -> Iterator[list[str]]:
    """Final sampled accuracy, mean ± spread over the seeds; one that broke down counts with its last."""
    for name in CORRECTIONS:
        cells = [name]
        for lag in lags:
            runs = [read(Case(name, lag, seed).file(folder)) for seed in seeds]
            broken = sum("ended" in lines[-1] for lines in runs)
            cells.append(_spread([measured(lines)[-1]["sampled"] for lines in runs]))
            cells[-1] += f", {broken} of {len(runs)} broke down" if broken else ""
        yield cells


def sample_sizes(folder: Path, lags: Sequence[int], seeds: Sequence[int]) -> Iterator[list[str]]:
    """Effective sample size of the raw weights: lowest of the steps before an evaluation, mean over the seeds."""
    for name in CORRECTIONS:
        cells = [name]
        for lag in lags:
            runs = [read(Case(name, lag, seed).file(folder)) for seed in seeds]
            lowest = [min(line["metrics"]["rollout_corr/ess"] for line in lines if line["metrics"]) for lines in runs]
            cells.append(_spread(lowest))
        yield cells


def measured(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of evaluations."""
    return [line for line in lines if "sampled" in line]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def draw(folder: Path, lags: Sequence[int], seeds: Sequence[int]) -> None:
    """One panel per lag: accuracy over steps, one line per correction, mean and lowest to highest."""
    panels = {
        f"lag {lag}": {
            name: [
                ([line["step"] for line in lines], [line["sampled"] for line in lines])
                for lines in (measured(read(Case(name, lag, seed).file(folder))) for seed in seeds)
            ]
            for name in CORRECTIONS
        }
        for lag in lags
    }
    figure(PICTURE, panels, x="train step", y="held-out accuracy, sampled")


def main() -> None:
    """Measure what is missing, then draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 2, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--mini-batches", type=int, default=1)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=HERE / "runs/staleness-study")
    parser.add_argument("--draw-only", action="store_true")
    args = parser.parse_args()
    learner = {
        "groups_per_step": args.groups,
        "mini_batches": args.mini_batches,
        "learning_rate": args.learning_rate,
        "schedule": {"warmup_updates": 10},
    }
    settings = json.dumps({"learner": learner, "steps": args.steps, "rows": CORRECTIONS, "common": COMMON}, indent=1)
    folder: Path = args.folder / hashlib.sha256(settings.encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(settings + "\n")
    for seed in args.seeds:
        inputs_of(seed)
    cases = [Case(name, lag, seed) for seed in args.seeds for lag in args.lags for name in CORRECTIONS]
    if not args.draw_only:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda case: measure(case, folder, learner, args.steps), cases))
    head = ["correction", *(f"lag {lag}" for lag in args.lags)]
    between_marks(PAGE, "table", head, rows(folder, args.lags, args.seeds))
    between_marks(PAGE, "ess", head, sample_sizes(folder, args.lags, args.seeds))
    draw(folder, args.lags, args.seeds)
    print(PICTURE)


if __name__ == "__main__":
    main()
