"""`ray job submit`: a run that nobody holds by the hand is found, steered and stopped by its name."""

from __future__ import annotations

import json

import pytest
from ray_clusters import RayHead, drill, names, until

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_a_job_is_submitted_left_alone_looked_at_scaled_and_stopped_by_name(tmp_path):
    drill(tmp_path / "project")
    with RayHead() as head:
        head.submit("one", tmp_path / "project", "penstock", "train", "drill.yaml", "limits.steps=100000")
        until("the run trains", lambda: "step 2" in head.logs_of("one"), 120)

        facts = head.status("drill")
        assert facts["verdict"] == "training"
        assert facts["facts"]["view"]["step"] >= 2
        run_dir = head.run_dir("drill")
        assert facts["facts"]["view"]["run_dir"] == str(run_dir), "kept where it lasts, not in the job's copy"
        assert f"run directory: {run_dir}" in head.logs_of("one")

        assert "now 2" in head.penstock("scale", "rollout=2", "--run", "drill")
        refused = head.penstock("scale", "rollout=5", "--run", "drill", code=2)
        assert "5 rollout workers are more than rollout.max_workers, which is 4" in refused
        unknown = head.penstock("status", "--run", "dril", code=2)
        assert "there is no run 'dril'; nearest: drill; " in unknown and run_dir.name in unknown
        stranger = head.penstock("status", "--run", "drill", code=2, RAY_AUTH_MODE="disabled")
        assert "does not accept a caller without a token" in stranger and "RAY_AUTH_TOKEN_PATH" in stranger
        until("the second worker generates", lambda: "rollout-1" in names(run_dir, "joined"), 60)

        head.stop("one")
        assert head.state_of("one")["status"] == "STOPPED"
        summary = json.loads((run_dir / "summary.json").read_text())
        assert (summary["outcome"], summary["why"]) == ("stopped", "interrupted by SIGTERM")
        assert summary["restarts"] == {}, "neither the store nor an actor was hit by the signal"
        newest = max(run_dir.glob("checkpoints/step-*"))
        assert newest.name == f"step-{summary['steps']:06d}-lineage-0"
        ledger = summary["ledger"]
        assert ledger["balanced"] and ledger["by_state"]["committed"] == 8 * summary["steps"]
        assert "there is no run 'drill'" in head.penstock("status", "--run", "drill", code=2)
