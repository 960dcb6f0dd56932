"""The Slurm script without a cluster: its form, and what it says to people. The whole is a story in tests/runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "slurm" / "penstock.sbatch"
VENV = Path(sys.executable).parent


def directives() -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SCRIPT.read_text(), re.MULTILINE)
    return dict(found)


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PENSTOCK_"))}
    standins = Path(__file__).parent / "slurm"
    clean |= {"PATH": f"{standins}:{VENV}:{os.environ['PATH']}", **environment}
    return subprocess.run(
        ["bash", str(SCRIPT), *words], cwd=folder, env=clean, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("script", [SCRIPT, Path(__file__).parent / "slurm" / "scontrol"], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    done = subprocess.run([VENV / "shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_signal_before_the_limit_goes_to_the_script_alone_and_leaves_time_for_a_step_and_a_checkpoint() -> None:
    to, seconds = directives()["signal"].split("@")
    assert to == "B:USR1" and int(seconds) >= 600
    assert "requeue" in directives()
    assert directives()["ntasks-per-node"] == "1"


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        ((), {"SLURM_JOB_ID": "7"}, "usage: sbatch penstock.sbatch RUN.yaml"),
        (("run.yaml",), {}, "this is no Slurm job: submit it with sbatch"),
        (("run.yaml",), {"SLURM_JOB_ID": "7"}, "there is no run file run.yaml"),
    ],
)
def test_a_wrong_start_is_one_sentence_and_exit_code_two(
    tmp_path: Path, words: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    done = run(tmp_path, *words, **environment)
    assert done.returncode == 2
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_environment_without_penstock_is_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").touch()
    done = run(tmp_path, "run.yaml", SLURM_JOB_ID="7", PATH="/usr/bin:/bin")
    assert done.returncode == 2
    assert "name a file to source in PENSTOCK_ACTIVATE" in done.stderr


def test_what_is_to_be_sourced_is_sourced_first(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").touch()
    (tmp_path / "activate").write_text("fail() { echo sourced; exit 7; }\ncommand() { return 1; }\n")
    done = run(tmp_path, "run.yaml", SLURM_JOB_ID="7", PENSTOCK_ACTIVATE=str(tmp_path / "activate"))
    assert (done.returncode, done.stdout) == (7, "sourced\n")
