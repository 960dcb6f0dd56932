"""The driver, its store and the store's disk are lost together: the checkpoint alone is enough to go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from driven import begun, resumed, steps_of
from ray_clusters import until

from penstock.services.rundir import RunDir

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]


def test_a_run_whose_driver_and_store_are_gone_goes_on_from_its_checkpoint_and_says_what_was_lost(tmp_path: Path):
    with begun(tmp_path, "limits.steps=100000", "checkpoints.every=4", "name=drill-lost") as (_, run):
        until("there are two checkpoints", lambda: len(list(run.checkpoints.glob("step-*"))) >= 2, 120)
        until("it has gone on", lambda: steps_of(run) % 4 == 2, 120)
    issued = (run.read_status() or {})["ledger"]["issued"]
    until("the store has ended by itself", lambda: not (run.store / "live").exists() or not _runs(run), 30)
    shutil.rmtree(run.store)

    saved = max(int(folder.name.split("-")[1]) for folder in run.checkpoints.glob("step-*"))
    resumed(run, f"limits.steps={saved + 6}")
    summary = json.loads(run.summary.read_text())
    ledger = summary["ledger"]
    assert summary["outcome"] == "finished" and summary["steps"] == saved + 6
    assert ledger["balanced"] and ledger["by_state"]["committed"] == 8 * (saved + 6)
    assert 0 < ledger["dropped"]["store_lost"] <= issued - 8 * saved


def _runs(run: RunDir) -> bool:
    pid = json.loads((run.store / "live" / "server.json").read_text())["pid"]
    return Path(f"/proc/{pid}").exists()
