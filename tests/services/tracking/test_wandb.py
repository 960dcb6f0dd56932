"""Weights & Biases, the real client in offline mode, compared with metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from wandb_file import history, parsed

from penstock.services.metrics import MetricsLog, read_rows
from penstock.services.rundir import RunDir
from penstock.services.tracking.config import TrackingSection
from penstock.services.tracking.feeds import Feeds, trackers
from penstock.services.versions import Version

pytestmark = pytest.mark.engine

SECTION = TrackingSection.model_validate(
    {"tensorboard": False, "wandb": {"project": "p", "mode": "offline", "tags": ["t"]}}
)
CONFIG = {"name": "run", "learner": {"learning_rate": 1e-5}, "store": {"url": "redis://:***@host/0"}}


def start(directory: RunDir, begins: Version, steps: range) -> None:
    """One process of the run."""
    feeds, log = Feeds(list(trackers(SECTION, directory, "run-1-abcd"))), MetricsLog(directory.metrics)
    feeds.begin(begins)
    for step in steps:
        values = {"reward/mean": step / 7, "kl/reference": 0.1 * (1 + begins.lineage)}
        feeds.step(Version(begins.lineage, step), values, 1000.0 + step)
        log.write(Version(begins.lineage, step), values, 1000.0 + step)
    log.close()
    directory.add_event("finished", "all is well")
    feeds.close("finished", deadline=120)
    assert feeds.troubles() == []


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> RunDir:
    made = RunDir.create(tmp_path_factory.mktemp("runs"), "tracked", yaml.safe_dump(CONFIG))
    start(made, Version(0, 0), range(1, 5))
    start(made, Version(1, 3), range(4, 6))
    return made


def files(directory: RunDir) -> list[Path]:
    return sorted((directory.path / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)


def test_what_was_logged_is_what_metrics_jsonl_holds(directory) -> None:
    logged = [row for file in files(directory) for row in history(file)]
    rows = read_rows(directory.metrics, lost_future=True)
    assert len(rows) == 6
    for name in ("step", "lineage", "time", "reward/mean", "kl/reference"):
        assert sorted(row[name] for row in logged) == pytest.approx(sorted(row[name] for row in rows))
    of_step_4 = {row["lineage"]: row["kl/reference"] for row in logged if row["step"] == 4}
    assert of_step_4 == {0: 0.1, 1: 0.2}, "both futures are there, and lineage tells them apart"


def test_a_resumed_run_keeps_its_id_and_the_run_file_is_its_config(directory) -> None:
    runs = [record.run for file in files(directory) for record in parsed(file) if record.HasField("run")]
    assert {run.run_id for run in runs} == {"run-1-abcd"}
    assert {run.display_name for run in runs} == {directory.path.name}
    assert {run.project for run in runs} == {"p"}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["learner"] == CONFIG["learner"]


def test_outcome_and_events_are_kept_and_the_secret_is_not(directory) -> None:
    folder = files(directory)[-1].parent
    kept = {path.name for path in (folder / "files").iterdir()}
    assert "events.jsonl" in kept
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"outcome" in everything
    assert b":***@host" in everything
