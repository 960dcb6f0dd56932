"""The two kinds of run that can be tormented: a drill without an engine, and the carry recipe with the real ones."""

from __future__ import annotations

import contextlib
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plan:
    """What to start."""

    run_file: Path
    overrides: tuple[str, ...]
    groups_per_step: int
    to_the_end: bool
    """It ends at a limit of its own, where its goals are judged."""


def common(silence: float, ranks: int) -> tuple[str, ...]:
    """What every run under torment has: a page, batches kept to look at, and more deaths than a cause would make."""
    return (
        "name=chaos",
        "rollout.max_restarts=1000",
        "learner.max_restarts=1000",
        "reward.max_restarts=1000",
        "store.max_restarts=1000",
        "archive.every=1",
        "archive.keep_last=100000",
        "recording.plots=false",
        "dashboard.enabled=true",
        f"deadlines.silence={silence}",
        f"store.deadline={0.8 * silence}",  # who waits for the store must not be taken for dead meanwhile
        f"learner.ranks={ranks}",
    )


def paced(inputs: Path, judged: Path, silence: float, ranks: int) -> Plan:
    """recipes/drill: a real learner, a real store, real actors; answers at random, at a set rate."""
    if not (inputs / "sums.jsonl").exists():
        runpy.run_path(str(ROOT / "recipes" / "drill" / "prepare.py"))["prepare"](inputs)
    return Plan(
        run_file=ROOT / "recipes" / "drill" / "drill.yaml",
        overrides=(
            *common(silence, ranks),
            f"model.path={inputs / 'model'}",
            f"data.sources.sums.path={inputs / 'sums.jsonl'}",
            "rollout.workers=2",
            "rollout.max_workers=4",
            "rollout.lease_seconds=3",
            "reward.scorers=2",
            "reward.max_scorers=3",
            "reward.workers=2",
            f"reward.folder={HERE}",
            f"reward.rules={{judge: {{rule: 'judge:judge', args: {{folder: '{judged}', seconds: 0.1}}}}}}",
            "checkpoints.every=10",
            "limits.steps=1000000",
        ),
        groups_per_step=8,
        to_the_end=False,
    )


def vllm(home: Path, seed: int, silence: float, ranks: int) -> Plan:
    """recipes/carry, with its goals; the fine-tuned model is made once and kept in `home`."""
    sys.path.insert(0, str(ROOT / "recipes" / "carry"))
    import demo

    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
        inputs = demo.prepare(seed, home)
        model = demo.fine_tuned(seed, inputs, home)
    return Plan(
        run_file=ROOT / "recipes" / "carry" / "grpo.yaml",
        overrides=(
            *common(silence, ranks),
            f"seed={seed}",
            f"model.path={model}",
            *demo.data_of(inputs, **demo.TRAINING_FILES),
            "rollout.max_workers=3",
            "rollout.lease_seconds=5",
            "limits.minutes=null",
            "evaluation.every=20",
            "evaluation.max_prompts=256",
            "checkpoints.every=10",
        ),
        groups_per_step=32,
        to_the_end=True,
    )
