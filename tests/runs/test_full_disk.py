"""The disk of the run directory fills up while a drill goes on: the run ends with that, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from disks import fill, small_disk
from driven import begun, resumed, steps_of
from ray_clusters import until

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]
ROOM = 1200 * 2**20
"""Bytes; a run does not begin with less than a gibibyte."""


def test_a_run_whose_disk_is_full_ends_with_that_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", ROOM) as disk:
        errors = tmp_path / "errors"
        given = ("limits.steps=100000", "checkpoints.every=4", "name=drill-full")
        with begun(tmp_path, *given, runs=disk, errors=errors) as (driver, run):
            until("there is a checkpoint, and more", lambda: steps_of(run) >= 6, 120)
            ballast = fill(disk)
            assert driver.wait(90) == 1
        said = errors.read_text()
        assert "could not be written: No space left on device; make room" in said
        assert f"penstock resume {run.path}" in said and "Traceback" not in said

        ballast.unlink()
        resumed(run, "limits.steps=12")
        summary = json.loads(run.summary.read_text())
        assert summary["outcome"] == "finished" and summary["steps"] == 12
        assert summary["ledger"]["balanced"] and summary["ledger"]["by_state"]["committed"] == 8 * 12
