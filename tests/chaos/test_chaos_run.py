"""A short chaos run: every part that a run ends without, but for its driver, is killed once. `make chaos` does it a
hundred times, stops parts as well, and strikes the driver and the page, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]
TESTS = Path(__file__).resolve().parents[1]
TARGETS = ("worker", "scorer", "store", "learner")


def test_a_run_whose_parts_are_killed_keeps_its_promises(tmp_path: Path) -> None:
    words = ["--kills", str(len(TARGETS)), "--seed", "0", "--ranks", "1", "--gap", "0.5", "--keep", str(tmp_path)]
    words += ["--signals", "kill", "--in-turn", "--targets", *TARGETS]
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-m", "chaos", *words], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    told = json.loads(done.stdout)
    assert told["violated"] == [] and done.returncode == 0, done.stderr
    assert all(told["by_target"][target] for target in TARGETS)
    assert told["recoveries"] == told["kills"] >= len(TARGETS) and told["resumed"] == 0
    assert told["steps"] > 0 and told["groups_redelivered"] > 0 and told["seconds_to_recover"]["max"] > 0
