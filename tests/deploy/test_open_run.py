"""A run on disk as Python sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from penstock import api
from penstock.services.metrics import MetricsLog
from penstock.services.rundir import RunDir, RunDirError
from penstock.services.versions import Version

VALUES = {
    "name": "sort",
    "model": {"path": "/models/small"},
    "data": {"sources": {"train": {"path": "/data/train.jsonl"}}},
}


@pytest.fixture
def directory(tmp_path: Path) -> RunDir:
    run = RunDir.create(tmp_path / "runs", "sort", yaml.safe_dump(VALUES))
    log = MetricsLog(run.metrics)
    log.write(Version(0, 1), {"reward/mean": 0.5}, at=1.0)
    log.close()
    run.write_samples(Version(0, 1), [{"prompt": "2+2=", "answer": "4"}])
    run.add_event("started", "hello")
    return run


def test_everything_a_run_wrote_can_be_read(directory: RunDir) -> None:
    run = api.open_run(directory.path)
    assert run.dir == directory.path
    assert run.metrics["reward/mean"].tolist() == [0.5]
    assert run.samples(1) == [{"prompt": "2+2=", "answer": "4"}]
    assert [event.message for event in run.events] == ["hello"]
    assert run.config.model.path == "/models/small"
    assert run.summary is None
    directory.write_summary({"steps": 1})
    assert run.summary == {"steps": 1}


def test_a_folder_that_is_no_run_is_refused(directory: RunDir) -> None:
    with pytest.raises(RunDirError, match=f"nearest: {directory.path}"):
        api.open_run(directory.path.parent)


def test_a_check_from_python_gives_findings(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("modle: {}\n")
    assert {"model", "modle", "data", "reward"} <= {finding.key for finding in api.check(path)}
