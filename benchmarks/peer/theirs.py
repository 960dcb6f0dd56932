"""A task by TRL's GRPOTrainer, in an environment of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

from benchmarks.peer.curve import Curve
from benchmarks.peer.tasks import GROUP_SIZE, GROUPS, Task

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
DEADLINE = 3600.0
"""Seconds for one run."""


def environment(folder: Path) -> Path:
    """Python with TRL, installed into `folder` once. Raises CalledProcessError when pip cannot."""
    python, stamp = folder / "bin" / "python", folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        print(f"[peer] installing TRL into {folder}", file=sys.stderr, flush=True)
        if not python.exists():
            venv.EnvBuilder(with_pip=True).create(folder)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", REQUIREMENTS], check=True)
        stamp.write_text(REQUIREMENTS.read_text())
    return python


def run(task: Task, seed: int, folder: Path, python: Path, threads: int) -> Curve:
    """The whole run, from nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    told, log = folder / "steps.jsonl", folder / "trl.log"
    told.unlink(missing_ok=True)
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(task).items()}
    asked |= {"seed": seed, "groups": GROUPS, "group_size": GROUP_SIZE, "out": str(told), "threads": threads}
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    began = time.time()
    with log.open("wb") as output:
        ended = subprocess.run(
            [python, HERE / "trl_run.py", json.dumps(asked)],
            env=environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=DEADLINE,
            cwd=folder,
        )
    if ended.returncode != 0:
        raise RuntimeError(f"TRL ended with {ended.returncode}; the end of {log}:\n{log.read_text()[-2000:]}")
    first, *steps = [json.loads(line) for line in told.read_text().splitlines()]
    answers = GROUPS * GROUP_SIZE
    trained = [step["length"] * answers for step in steps]
    return Curve(
        startup=first["at"] - began,
        seconds=[step["at"] - first["at"] for step in steps],
        tokens=[sum(trained[: end + 1]) for end in range(len(trained))],
        accuracy=[step["reward"] for step in steps],
        length=sum(step["length"] for step in steps) / len(steps),
    )
