"""The disk of the run directory fills up while a drill goes on: the run ends with that, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from disks import fill, small_disk
from ray_clusters import until

from benchmarks.drills import RECIPE, inputs_in
from penstock.services.rundir import RunDir

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]
ROOM = 1200 * 2**20
"""Bytes; a run does not begin with less than a gibibyte."""


def test_a_run_whose_disk_is_full_ends_with_that_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    given = [word for word in inputs_in(tmp_path) if not word.startswith("runs_dir=")]
    given += ["limits.steps=100000", "checkpoints.every=4", "name=drill-full"]
    with small_disk(tmp_path / "disk", ROOM) as disk:
        command = ["penstock", "train", str(RECIPE / "drill.yaml"), *given, f"runs_dir={disk}"]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        until("there is a run", lambda: list(disk.glob("drill-full-*")), 120)
        run = RunDir.open(next(disk.glob("drill-full-*")))
        until("there is a checkpoint, and more", lambda: (run.read_status() or {}).get("step", 0) >= 6, 120)
        ballast = fill(disk)
        said = driver.communicate(timeout=90)[1]
        assert driver.returncode == 1
        assert "could not be written: No space left on device; make room" in said
        assert f"penstock resume {run.path}" in said and "Traceback" not in said

        ballast.unlink()
        subprocess.run(["penstock", "resume", str(run.path), "limits.steps=12"], check=True, timeout=240)
        summary = json.loads(run.summary.read_text())
        assert summary["outcome"] == "finished" and summary["steps"] == 12
        assert summary["ledger"]["balanced"] and summary["ledger"]["by_state"]["committed"] == 8 * 12
