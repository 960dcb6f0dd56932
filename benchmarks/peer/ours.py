"""A task by Penstock, as a user runs it: two rollout workers and a learner, asynchronous, with its defaults."""

from __future__ import annotations

import json
import time
from pathlib import Path

import penstock
from benchmarks.carry import HERE
from benchmarks.peer.curve import Curve
from benchmarks.peer.tasks import GROUP_SIZE, GROUPS, Task
from penstock.services.rundir import RunDir


def run(task: Task, seed: int, folder: Path) -> Curve:
    """The whole run, from nothing; its files are left in `folder`."""
    began = time.time()
    done = penstock.train(HERE / "recipes" / "carry" / "grpo.yaml", overrides(task, seed, folder))
    directory = RunDir.open(done.dir)
    joined = [event for event in directory.read_events() if event.kind == "joined"]
    started = min(event.at for event in joined if str(event.facts["name"]).startswith("rollout"))
    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    steps = [line for line in lines if "learner/tokens" in line]
    lengths = [line["response/length_mean"] for line in steps]
    return Curve(
        startup=started - began,
        seconds=[line["time"] - started for line in steps],
        tokens=[line["learner/tokens"] for line in steps],
        accuracy=[line["reward/mean"] for line in steps],
        length=sum(lengths) / len(lengths),
    )


def overrides(task: Task, seed: int, folder: Path) -> list[str]:
    """The recipe's run file with compiled layers, and without what is no part of the task: evaluations and checkpoints
    on the way, goals, and a filter that TRL does not have."""
    return [
        f"name=peer-{task.name}",
        f"seed={seed}",
        f"runs_dir={folder}",
        f"model.path={task.model}",
        f"data.sources.sums.path={task.prompts}",
        f"rollout.group_size={GROUP_SIZE}",
        f"rollout.sampling.max_tokens={task.max_tokens}",
        f"engine.max_model_len={task.context}",
        f"engine.enforce_eager={str(not task.compiled).lower()}",
        f"reward.rules={{{task.rule}: {{}}}}",
        "algorithm.group_filter=all",
        f"learner.groups_per_step={GROUPS}",
        "learner.compile=true",
        f"learner.learning_rate={task.learning_rate}",
        f"learner.schedule.warmup_updates={task.warmup}",
        f"limits.steps={task.steps}",
        "limits.minutes=20",
        "evaluation.data=null",
        "evaluation.every=0",
        "checkpoints.keep_best=null",
        "checkpoints.every=1000",
        "recording.plots=false",
        "goals=[]",
    ]
