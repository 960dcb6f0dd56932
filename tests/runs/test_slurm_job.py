"""A Slurm job with stand-ins for Slurm and a real Ray cluster of two raylets: stopped before its time limit, put back
into the queue, resumed and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from penstock.services.rundir import RunDir

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]
ROOT = Path(__file__).resolve().parents[2]
STANDINS = ROOT / "tests" / "deployment" / "slurm"
STEPS = 60
JOB = str(os.getpid() + 100_000)
"""A job id that no other job on this machine has: ports and folders follow from it."""


class Job:
    """What Slurm does with a batch script, on one machine that plays two nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.requeued = folder, folder / "runs", folder / "requeued"
        self.log = folder / "job.log"
        venv = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{STANDINS}:{venv}:{os.environ['PATH']}",
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": f"{socket.gethostname()},other",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_STUB_REQUEUED": str(self.requeued),
            "PENSTOCK_RUNS": str(self.runs),
            "PENSTOCK_START_DEADLINE": "240",
        }

    def start(self, *overrides: str) -> subprocess.Popen[bytes]:
        script = [ROOT / "deploy" / "slurm" / "penstock.sbatch", ROOT / "recipes" / "drill" / "drill.yaml"]
        with self.log.open("ab") as out:
            command = ["bash", *map(str, script), *overrides]
            return subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=out, stderr=out)

    def run_dir(self) -> RunDir | None:
        return RunDir.newest_of(self.runs / JOB, "drill")

    def step(self) -> int:
        run = self.run_dir()
        return int(((run.read_status() if run else None) or {}).get("step", 0))

    def leftovers(self) -> list[str]:
        """Processes of this job's Ray cluster, and its folders."""
        mark = f"penstock-ray-{JOB}"
        lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        folders = [path for path in (Path("/tmp") / mark, self.runs / f".slurm-{JOB}") if path.exists()]
        return [line for line in lines if mark in line] + [str(path) for path in folders]


def wait(
    what: str, true: Callable[[], bool], job: Job, process: subprocess.Popen[bytes], deadline: float = 240
) -> None:
    ends = time.monotonic() + deadline
    while not true():
        assert time.monotonic() < ends, f"waited {deadline} s until {what}; the log:\n{job.log.read_text()[-3000:]}"
        assert process.poll() is None, f"the job ended before {what}; the log:\n{job.log.read_text()[-3000:]}"
        time.sleep(0.2)


def test_a_job_that_is_stopped_before_its_limit_is_requeued_and_goes_on_from_its_checkpoint(
    tmp_path: Path,
) -> None:
    job = Job(tmp_path)
    subprocess.run([sys.executable, ROOT / "recipes" / "drill" / "prepare.py", tmp_path / "inputs"], check=True)
    overrides = [
        f"model.path={tmp_path / 'inputs' / 'model'}",
        f"data.sources.sums.path={tmp_path / 'inputs' / 'sums.jsonl'}",
        f"limits.steps={STEPS}",
        "engine.paced.tokens_per_second=2000",
        *(f"placement.{role}.resources={{penstock-{role}: 0.001}}" for role in ("learner", "rollout", "scorer")),
    ]
    process = job.start(*overrides)
    try:
        wait("the run trains", lambda: job.step() >= 3, job, process)
        assert job.leftovers(), "a look that finds nothing at the end must find something now"
        process.send_signal(signal.SIGUSR1)  # as Slurm does before the time limit
        assert process.wait(180) == 0, job.log.read_text()[-3000:]
        assert job.requeued.read_text() == f"{JOB}\n"
        run = job.run_dir()
        assert run is not None
        stopped = run.read_summary()
        assert stopped is not None and stopped["outcome"] == "stopped"
        assert 3 <= stopped["steps"] < STEPS
        assert job.leftovers() == []

        process = job.start(*overrides)  # the same script with the same words, as Slurm starts it again
        assert process.wait(300) == 0, job.log.read_text()[-3000:]
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(180)
    again = job.run_dir()
    assert again is not None and again.path == run.path, "a second run was begun"
    ended = run.read_summary()
    assert ended is not None and (ended["outcome"], ended["steps"]) == ("finished", STEPS)
    assert ended["ledger"]["balanced"]
    assert ended["steps_of_this_start"] == STEPS - stopped["steps"]
    assert job.requeued.read_text() == f"{JOB}\n", "a run that has ended is not put back"
    assert job.leftovers() == []
