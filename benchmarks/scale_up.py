"""What a worker costs that joins, and what is lost with one that leaves: `python -m benchmarks.scale_up [--rounds 3]`.

The carry recipe on the real engines, with one worker and the learner at work. Two JSON lines, a run for each:

    scale_up     In turns, under that same load, a second worker joins and leaves again, and a bare engine is started: a
                 process that imports vLLM, loads the same model with the same settings and samples one answer, at the
                 priority that the workers have. Median
                 seconds from the command to the first group of the new worker in the store, over median seconds from
                 the start of the bare engine's process to its answer; the goal is 1.3 at most.
    scale_down   With answers of 64 tokens, so that whoever leaves does so in the middle of them: what the workers that
                 left had sampled and handed on, and what was thrown away; the goal is 0.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks import measuring
from benchmarks.carry import HERE, demo
from benchmarks.drills import Onlooker, played
from penstock.deploy.cluster import actor_environment
from penstock.deploy.runfile import load
from penstock.services.control import Scale, Stop

GOAL = 1.3
RUN_FILE = HERE / "recipes" / "carry" / "grpo.yaml"
FIXED = (
    "name=scale-up",
    "rollout.workers=1",
    "rollout.max_workers=2",
    "algorithm.group_filter=all",
    "staleness.max_lag=8",
    "limits.steps=1000000",
    "limits.minutes=60",
    "evaluation.every=0",
    "evaluation.data=null",
    "checkpoints.every=100000",
    "checkpoints.keep_best=null",
    "recording.plots=false",
    "goals=[]",
)
LONG = ("name=scale-down", "rollout.sampling.max_tokens=64", "engine.max_model_len=96")
CALM = 5.0
"""Seconds between two measurements."""


def overrides_in(folder: Path) -> list[str]:
    """With a model of random weights: how fast an engine starts does not depend on what it has learned."""
    made = demo()
    inputs = made.prepare(0, folder)
    data = made.data_of(inputs, **{"data.sources.sums.path": "train.jsonl"})
    return [f"runs_dir={folder}", f"model.path={inputs / 'model'}", *data, *FIXED]


def bare_engine(overrides: list[str], nice: int) -> float:
    """Seconds from the start of a process to the first answer of its engine, at the priority `nice`: Ray lowers that of
    its workers, and a process of a higher one would not feel their load."""
    environment = os.environ | actor_environment(threads=1, device="cpu")
    began = time.monotonic()
    command = ["nice", "-n", str(nice), sys.executable, "-m", "benchmarks.scale_up", "--bare", *overrides]
    with subprocess.Popen(command, cwd=HERE, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("answered"):
                return time.monotonic() - began
    raise RuntimeError(f"the bare engine ended without an answer, exit code {process.returncode}")


def answer_once(overrides: list[str]) -> None:
    """Load what the run file says into an engine and sample one answer."""
    from penstock.rollout.ends import end_tokens, sampling_of
    from penstock.rollout.vllm_engine import VllmGenerator
    from penstock.services.contracts import Request
    from penstock.services.models import load_tokenizer
    from penstock.services.trajectory import Prompt
    from penstock.services.versions import FIRST

    run = load(RUN_FILE, overrides)
    tokenizer = load_tokenizer(run.model)
    generator = VllmGenerator(
        run.model.path,
        run.engine,
        tokenizer=tokenizer,
        end_tokens=end_tokens(run.model.path, tokenizer, run.model.revision),
        loaded=FIRST,
    )
    import numpy as np

    tokens = np.asarray(tokenizer("12+34=").input_ids, np.int32)
    prompt = Prompt(index=0, source="bare", row=0, epoch=0, tokens=tokens, text="12+34=", columns={})
    generator.submit(Request("a", prompt, sampling_of(run.rollout.sampling, tokenizer)))
    while not generator.step():
        pass
    print("answered", flush=True)
    os._exit(0)  # how long an engine takes to end is not asked


def nice_of(onlooker: Onlooker) -> int:
    """The priority of the run's workers, as `nice` counts it."""
    assert onlooker.view is not None
    return next(psutil.Process(member.pid).nice() for member in onlooker.view.workers if member.role == "rollout")


def joined_and_left(onlooker: Onlooker, number: int) -> float:
    """Let a second worker join and leave again; seconds from the command to its first group."""
    name = f"rollout-{number}"
    time.sleep(CALM)
    asked = time.time()
    onlooker.control.send(Scale("rollout", 2), "benchmark")
    onlooker.delivered(name)
    events = [event for event in onlooker.directory.read_events() if event.kind == "delivered"]
    delivered = next(event.at for event in events if event.facts["name"] == name)
    time.sleep(CALM)
    onlooker.control.send(Scale("rollout", 1), "benchmark")
    onlooker.left(name)
    return delivered - asked


def up(folder: Path, rounds: int) -> dict[str, Any]:
    """The line about joining."""
    overrides = overrides_in(folder)
    joins, bare = [], []

    def play(onlooker: Onlooker) -> None:
        for number in range(1, rounds + 1):
            joins.append(joined_and_left(onlooker, number))
            time.sleep(CALM)
            bare.append(bare_engine(overrides, nice_of(onlooker)))
        onlooker.control.send(Stop("measured"), "benchmark")

    played(RUN_FILE, overrides, play)
    ratio = statistics.median(joins) / statistics.median(bare)
    return {
        "command_to_first_group_seconds": [round(value, 2) for value in joins],
        "bare_engine_seconds": [round(value, 2) for value in bare],
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "met": ratio <= GOAL,
    }


def down(folder: Path, rounds: int) -> dict[str, Any]:
    """The line about leaving."""

    def play(onlooker: Onlooker) -> None:
        for number in range(1, rounds + 1):
            joined_and_left(onlooker, number)
        onlooker.control.send(Stop("measured"), "benchmark")

    run = played(RUN_FILE, [*overrides_in(folder), *LONG], play)
    left = [event.facts["tokens"] for event in run.events if event.kind == "left"]
    lost = sum(t["sampled"] + t["resumed"] - t["put"] - t["handed_back"] for t in left)
    return {
        "workers": len(left),
        "sampled": sum(t["sampled"] for t in left),
        "handed_on": sum(t["handed_back"] for t in left),
        "thrown_away": lost,
        "goal": 0,
        "met": lost == 0,
    }


def main() -> None:
    """Measure and print the lines."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the run and its inputs go")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", nargs="+", metavar="OVERRIDE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        answer_once(args.bare)
        return
    for measure in (up, down):
        line = measuring.Line(f"scale_{measure.__name__}")
        line.end(measure(args.folder.resolve(), args.rounds), args.keep)


if __name__ == "__main__":
    main()
