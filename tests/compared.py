"""Two run directories made by hand, for everything that compares runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.services.metrics import MetricsLog
from penstock.services.rundir import RunDir
from penstock.services.versions import Version

CONFIG = """name: {name}
seed: 0
learner: {{learning_rate: {rate}, betas: [0.9, 0.999]}}
staleness: {{max_lag: {max_lag}}}
"""


def run_of(
    folder: Path, name: str, steps: int, rate: float = 1e-4, max_lag: int = 2, more: str = "", **slope: float
) -> RunDir:
    """Ten tokens and half a second a step, reward a hundredth per step; evaluated at steps 1 and `steps`."""
    directory = RunDir.create(folder / "runs", name, CONFIG.format(name=name, rate=rate, max_lag=max_lag) + more)
    log = MetricsLog(directory.metrics)
    log.begin(Version(0, 0), 100.0)
    for step in range(1, steps + 1):
        values = {
            "learner/tokens": 10.0 * step,
            "time/step": 0.5,
            "time/wait": 0.125,
            "reward/mean": slope.get("reward", 0.01) * step,
            "off_policy/mean": 0.5,
            "off_policy/max": float(step % 2),
            "dropped/stale": 1.0,
            "learner/tokens_per_second": 20.0,
        }
        if step in (1, steps):
            values["eval/sampled/accuracy"] = step / 100
        log.write(Version(0, step), values, 100.0 + step)
    log.close()
    return directory


def end(directory: RunDir, outcome: str = "finished", **summary: Any) -> RunDir:
    """The run is over."""
    directory.write_summary({"outcome": outcome} | summary)
    return directory
