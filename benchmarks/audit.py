"""The audit of runs at several bounds on the lag: how far from the sampler, and which part of that is staleness.

    python -m benchmarks.audit [--max-lags 0 2 8] [--seed 0] [--steps 60] [--page docs/staleness.md]

Runs the carry recipe once per bound, two rollout workers and a learner, every fifth step audited; prints one JSON line
per run and writes the table of the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.carry import HERE, RUNS, demo
from benchmarks.tables import between_marks

EVERY, SEQUENCES = 5, 64
PARTS = {"update": "kl/update_audited", "staleness": "kl/staleness", "mismatch": "kl/mismatch"}
BUCKETS = ("lag_0", "lag_1", "lag_2", "lag_3_4", "lag_5_8", "lag_9_up")
HEAD = (
    "max_lag",
    "mean lag (largest)",
    "update",
    "staleness",
    "mismatch",
    *(f"staleness, {bucket.replace('_up', ' and up').replace('_', ' ', 1).replace('_', '–')}" for bucket in BUCKETS),
    "residual",
)


def measured(max_lag: int, seed: int, steps: int) -> dict[str, Any]:
    """Means over the audited steps of one run; a bucket that no audit has seen is left out."""
    made = demo()
    inputs = made.prepare(seed, RUNS)
    model = made.fine_tuned(seed, inputs, RUNS)
    overrides = [
        f"staleness.max_lag={max_lag}",
        f"audit.every={EVERY}",
        f"audit.sequences={SEQUENCES}",
        f"limits.steps={steps}",
        "limits.minutes=null",
        "evaluation.every=0",
        "goals=[]",
    ]
    metrics = made.trained(seed, inputs, model, RUNS, overrides).metrics
    audited = metrics[metrics["audit/tokens"] > 0]
    found: dict[str, Any] = {
        "benchmark": "audit",
        "max_lag": max_lag,
        "seed": seed,
        "audits": len(audited),
        "lag_mean": float(audited["off_policy/mean"].mean()),
        "lag_max": float(audited["off_policy/max"].max()),
        "residual": float(audited["audit/residual"].max()),
        "missing": float(audited["audit/missing"].sum()),
        "seconds": float(audited["audit/seconds"].mean()),
    }
    names = list(PARTS.values()) + [f"kl/staleness/{bucket}/k3" for bucket in BUCKETS]
    return found | {name: float(audited[name].mean()) for name in names if name in audited}


def rows(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The page's table."""
    return [
        [
            str(run["max_lag"]),
            f"{run['lag_mean']:.2f} ({run['lag_max']:.0f})",
            *(f"{run[name]:.1e}" for name in PARTS.values()),
            *(f"{value:.1e}" if (value := run.get(f"kl/staleness/{b}/k3")) is not None else "–" for b in BUCKETS),
            f"{run['residual']:.0e}",
        ]
        for run in runs
    ]


def main() -> None:
    """Every bound, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-lags", type=int, nargs="+", default=[0, 2, 8])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--page", type=Path, default=HERE / "docs" / "staleness.md")
    args = parser.parse_args()
    runs = []
    for max_lag in args.max_lags:
        runs.append(measured(max_lag, args.seed, args.steps))
        print(json.dumps(runs[-1]), flush=True)
    between_marks(args.page, "audit", HEAD, rows(runs))


if __name__ == "__main__":
    main()
