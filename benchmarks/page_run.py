"""A run directory as a long run leaves it, made in seconds: for measurements and pictures of the page.

    python -m benchmarks.page_run FOLDER [--steps 100000] [--seconds 1.5]

Metrics have the names of a real run and move like one that learns, lags, and is steered now and then; nothing was
trained.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.deploy.view import Controls, RunView, WorkerView
from penstock.services.lanes import LanesLog, Span
from penstock.services.replay import LedgerCounts
from penstock.services.rundir import RunDir
from penstock.services.versions import Version

BUCKETS = ("lag_0", "lag_1", "lag_2", "lag_3_4", "lag_5_8")
LAGS = (0.0, 1.0, 2.0, 3.5, 6.5)
CONFIG = """name: {name}
algorithm: {{name: grpo, kl: {{coefficient: 0.02}}}}
learner: {{learning_rate: 1.0e-06, groups_per_step: 32}}
staleness: {{max_lag: 8}}
rollout: {{workers: 3, max_workers: 6}}
"""
_CHUNK = 5000
Series = dict[str, NDArray[np.float64]]


def series(steps: NDArray[np.float64], total: int, random: np.random.Generator) -> Series:
    """About a hundred metrics of these steps, of `total` in all."""

    def noise(scale: float) -> NDArray[np.float64]:
        return random.normal(0.0, scale, len(steps))

    along = steps / total
    learned = 1 / (1 + np.exp(-9 * (along - 0.3)))
    wave = np.sin(along * 25)
    lag = 2.2 + 1.1 * wave + 0.8 * along
    found: Series = {
        "reward/mean": 0.15 + 0.72 * learned + noise(0.04),
        "reward/solved": np.clip(0.1 + 0.78 * learned + noise(0.05), 0, 1),
        "reward/part/correct": 0.1 + 0.8 * learned + noise(0.05),
        "reward/part/format": np.clip(0.55 + 0.44 * learned**0.4 + noise(0.02), 0, 1),
        "reward/part/brevity": 0.5 - 0.2 * learned + noise(0.03),
        "reward/std": 0.45 - 0.2 * learned + noise(0.01),
        "reward/with_signal": np.clip(0.9 - 0.5 * learned + noise(0.05), 0, 1),
        "reward/unscored": np.abs(noise(0.004)),
        "kl/reference": 0.002
        + 0.09 * along**1.3
        + np.abs(noise(0.004))
        + 0.05 * np.exp(-(((along - 0.62) / 0.03) ** 2)),
        "kl/update": 0.0008 + np.abs(noise(0.0003)),
        "kl/offpolicy": 0.004 * lag + np.abs(noise(0.002)),
        "actor/entropy": 1.4 - 0.9 * learned + noise(0.02),
        "actor/pg_clipfrac_low": np.abs(0.004 + 0.002 * wave + noise(0.001)),
        "actor/pg_clipfrac_high": np.abs(0.011 + 0.006 * wave + noise(0.002)),
        "actor/grad_norm": np.abs(0.6 + noise(0.12)),
        "actor/lr": np.full(len(steps), 1e-6),
        "actor/kl_coefficient": np.where(along > 0.63, 0.03, 0.02),
        "actor/loss": noise(0.02),
        "rollout_corr/ess": np.clip(0.985 - 0.035 * lag + noise(0.01), 0, 1),
        "off_policy/mean": lag,
        "off_policy/max": np.minimum(8.0, np.round(lag + 3)),
        "off_policy/bound": np.full(len(steps), 8.0),
        "response/length_mean": 180 + 90 * learned + noise(9),
        "time/step": np.abs(1.5 + noise(0.1)),
        "time/wait": np.abs(0.35 + 0.2 * wave + noise(0.05)),
        "learner/busy": np.clip(0.7 - 0.1 * wave + noise(0.03), 0, 1),
        "learner/tokens_per_second": 5200 - 500 * wave + noise(160),
        "rollout/tokens_per_second": 5600 + 700 * wave + noise(200),
        "rollout/workers": np.where(along > 0.5, 3.0, 2.0),
        "ledger/stored": np.round(24 + 14 * wave + np.abs(noise(2))),
        "ledger/reserved": np.round(30 + np.abs(noise(3))),
        "ledger/queue_age": np.abs(4 + 2.6 * wave + noise(0.4)),
        "dropped/stale": random.poisson(0.25 + 0.25 * (wave > 0.6), len(steps)).astype(float),
        "dropped/no_signal": random.poisson(3 + 9 * learned).astype(float),
        "dropped/nonfinite": np.zeros(len(steps)),
        "refused/unscored": random.poisson(0.02, len(steps)).astype(float),
    }
    weights = np.stack([np.exp(-(((np.array(each) - lag) / 1.7) ** 2)) for each in LAGS])
    for bucket, own, share in zip(BUCKETS, LAGS, weights / weights.sum(0), strict=True):
        found |= {
            f"off_policy/{bucket}/tokens": np.round(9000 * share),
            f"kl/offpolicy/{bucket}/k3": 0.001 + 0.0035 * own + np.abs(noise(0.0012)),
            f"kl/update/{bucket}/k3": 0.0008 + np.abs(noise(0.0003)),
            f"rollout_corr/{bucket}/mean": 1 + noise(0.01) * (1 + own),
            f"rollout_corr/{bucket}/max": 1.3 + 0.5 * own + np.abs(noise(0.2)),
            f"rollout_corr/{bucket}/ess": np.clip(0.995 - 0.03 * own + noise(0.006), 0, 1),
            f"rollout_corr/{bucket}/clipfrac": np.abs(0.002 * own + noise(0.001)),
            f"rollout_corr/{bucket}/left_out": np.abs(0.001 * own + noise(0.0005)),
            f"actor/{bucket}/pg_clipfrac_low": np.abs(0.003 + noise(0.001)),
            f"actor/{bucket}/pg_clipfrac_high": np.abs(0.01 + noise(0.002)),
        }
    for number in range(100 - len(found)):
        found[f"scorer/failed/rule_{number}"] = np.zeros(len(steps))
    return found


def lines(total: int, seconds: float, end: float) -> Iterator[bytes]:
    """`metrics.jsonl`; every fortieth step has an evaluation."""
    random = np.random.default_rng(0)
    yield msgspec.json.encode({"lineage": 0, "step": 0, "time": end - total * seconds}) + b"\n"
    for first in range(1, total + 1, _CHUNK):
        steps = np.arange(first, min(total, first + _CHUNK - 1) + 1, dtype=float)
        found = series(steps, total, random)
        names, table = list(found), np.stack(list(found.values())).T.tolist()
        for step, values in zip(steps.astype(int).tolist(), table, strict=True):
            row = {"lineage": 0, "step": step, "time": round(end - (total - step) * seconds, 3)}
            row |= dict(zip(names, values, strict=True))
            if step % max(1, total // 40) == 0:
                solved = float(found["reward/solved"][step - first])
                row |= {"eval/sampled/accuracy": solved * 0.95, "eval/greedy/accuracy": min(1.0, solved * 1.04)}
            yield msgspec.json.encode(row) + b"\n"


def write(folder: Path, total: int, seconds: float = 1.5) -> RunDir:
    """A run directory of `total` steps of so many seconds, the last one just now."""
    folder.mkdir(parents=True, exist_ok=True)
    run, end = RunDir(folder.resolve()), time.time()
    run.config.write_text(CONFIG.format(name=folder.name))
    with run.metrics.open("wb") as file:
        file.writelines(lines(total, seconds, end))
    _events(run, total, end - total * seconds, end)
    _lanes(run, end)
    run.write_status(_view(run, total, end - total * seconds, end))
    return run


def _events(run: RunDir, total: int, begin: float, end: float) -> None:
    def at(share: float) -> float:
        return round(begin + share * (end - begin), 3)

    told = [
        (0.0, "training", "training", {}),
        (0.0, "joined", "rollout-0 begins to generate", {"name": "rollout-0"}),
        (0.31, "steered", "page from 127.0.0.1: a checkpoint is written at the end of the step", {"by": "page"}),
        (
            0.44,
            "died",
            "rollout-1 died: killed by SIGKILL\nlast lines of its log:\n  swapped to 0.44",
            {"name": "rollout-1"},
        ),
        (0.45, "restarted", "rollout-1 is back", {"name": "rollout-1"}),
        (0.5, "steered", "scale by ada@lab-3: rollout workers wanted: 2 before, now 3", {"by": "scale by ada@lab-3"}),
        (
            0.63,
            "guard",
            "kl/reference > 0.1 for 3 steps: kl.coefficient 0.02 → 0.03",
            {"by": "guard kl/reference > 0.1"},
        ),
        (
            0.7,
            "guard",
            "guard kl: kl/reference > 0.1 for 3 steps, found 0.11: it has fired twice, as often as it may",
            {"name": "kl", "what": "exhausted"},
        ),
        (0.8, "refused", "page from 127.0.0.1: 9 rollout workers are more than rollout.max_workers", {"by": "page"}),
        (0.99, "checkpoint", f"checkpoint at version 0.{total}", {"version": f"0.{total}"}),
    ]
    encoded = [
        msgspec.json.encode({"time": at(share), "kind": kind, "message": message} | facts) + b"\n"
        for share, kind, message, facts in told
    ]
    run.events.write_bytes(b"".join(encoded))


def _lanes(run: RunDir, end: float) -> None:
    """The last ten minutes of three workers and a learner."""
    random = np.random.default_rng(1)
    log = LanesLog(run.activity, run.activity_before)
    lanes: dict[str, list[Span]] = {}
    for number in range(3):
        lanes[f"rollout-{number}"] = list(_turns(random, end, (("generating", 1.25), ("swapping weights", 0.12))))
    lanes["rollout-2"] += [Span("waiting: lag", lanes["rollout-2"][-1].end, lanes["rollout-2"][-1].end + 2.0)]
    turn = (("waiting for groups", 0.3), ("training", 1.05), ("publishing", 0.12))
    lanes["learner-0"] = list(_turns(random, end, turn))
    log.write(lanes)
    log.close()


def _turns(random: np.random.Generator, end: float, turn: tuple[tuple[str, float], ...]) -> Iterator[Span]:
    now = end - 600.0
    while now < end:
        for phase, mean in turn:
            until = min(end, now + mean * random.uniform(0.6, 1.4))
            yield Span(phase, now, until)
            now = until


def _view(run: RunDir, total: int, begin: float, end: float) -> RunView:
    def rollout(number: int, state: str, behind: int, flying: int, tokens: int, rate: float) -> WorkerView:
        version = f"0.{total - behind}"
        pid = 4712 + number
        return WorkerView(
            f"rollout-{number}", "rollout", state, pid, "127.0.0.1", version, flying, rate, tokens_in_flight=tokens
        )

    workers = [
        WorkerView("learner-0", "learner", "training", 4711, "127.0.0.1", f"0.{total}", 0, 5200.0),
        rollout(0, "generating", 0, 48, 7300, 1890.0),
        rollout(1, "swapping weights", 1, 46, 6900, 1850.0),
        rollout(2, "waiting: lag", 0, 0, 0, 1702.0),
        WorkerView("scorer-0", "scorer", "running", 4715, "127.0.0.1"),
    ]
    states = {"returned": 0, "reserved": 30, "stored": 26, "taken": 32, "applied": 64}
    dropped = {"stale": 210, "no_signal": 4310}
    by_state = states | {"committed": total * 32, "dropped": sum(dropped.values())}
    ledger = LedgerCounts(sum(by_state.values()), by_state, dropped, 14_000_000, Version(0, total))
    return RunView(
        phase="training",
        step=total,
        steps_total=total * 2,
        version=f"0.{total}",
        ledger=ledger,
        workers=tuple(workers),
        started=begin,
        time_left=end - begin,
        name=run.path.name,
        run_dir=str(run.path),
        at=end,
        controls=Controls(coefficients={"learning_rate": 1e-6, "max_lag": 8.0, "kl.coefficient": 0.03}),
    )


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=1.5)
    asked = parser.parse_args()
    print(write(asked.folder, asked.steps, asked.seconds).path)


if __name__ == "__main__":
    main()
