"""MLflow, the real client on a database of its own, compared with metrics.jsonl by reading that database.

MLflow and the engines do not agree on one version of cachetools, so the client that is tested lies in a folder of its
own, which only the tracker's process sees.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from penstock.services.metrics import MetricsLog, read_rows
from penstock.services.rundir import RunDir
from penstock.services.tracking.config import TrackingSection
from penstock.services.tracking.feeds import Feeds, trackers
from penstock.services.versions import Version

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.story]

CONFIG = {"name": "run", "learner": {"learning_rate": 1e-5, "ranks": 2}, "store": {"url": "redis://:***@host/0"}}


@pytest.fixture(scope="module")
def installed() -> Path:
    """Where MLflow is; installed at the first time."""
    folder = Path(sys.prefix) / "opt" / "mlflow"
    if not (folder / "mlflow").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(folder)]
        subprocess.run([*pip, "mlflow-skinny>=3.1", "sqlalchemy", "alembic"], check=True, timeout=500)
    return folder


@pytest.fixture(scope="module")
def database(installed, tmp_path_factory):
    """A run of two processes, the second one after a fall-back: its directory and the open database."""
    home = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{home / 'mlflow.db'}"
    section = TrackingSection.model_validate({"tensorboard": False, "mlflow": {"tracking_uri": uri, "experiment": "e"}})
    directory = RunDir.create(home / "runs", "tracked", yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{installed}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for begins, steps, outcome in (
            (Version(0, 0), range(1, 5), "stopped"),
            (Version(1, 3), range(4, 6), "finished"),
        ):
            feeds, log = Feeds(list(trackers(section, directory, "run-1-abcd"))), MetricsLog(directory.metrics)
            feeds.begin(begins)
            for step in steps:
                values = {"reward/mean": step / 7, "kl/reference": 0.1 * (1 + begins.lineage), "a/nan": float("nan")}
                feeds.step(Version(begins.lineage, step), values, 1000.0 + step + 10 * begins.lineage)
                log.write(Version(begins.lineage, step), values, 1000.0 + step + 10 * begins.lineage)
            log.close()
            feeds.close(outcome, deadline=200)
            assert feeds.troubles() == []
    return directory, sqlite3.connect(home / "mlflow.db")


def test_every_value_is_there_with_its_step_and_time(database) -> None:
    directory, base = database
    rows = read_rows(directory.metrics, lost_future=True)
    assert len(rows) == 6
    for name in ("reward/mean", "kl/reference", "lineage"):
        stored = base.execute("select step, timestamp, value from metrics where key = ?", (name,)).fetchall()
        wanted = [(row["step"], row["time"] * 1000, row[name]) for row in rows]
        assert sorted(stored) == [(step, at, pytest.approx(value)) for step, at, value in sorted(wanted)]
    assert base.execute("select count(*) from metrics where key = 'a/nan' and is_nan").fetchone() == (6,)


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(database) -> None:
    directory, base = database
    assert base.execute("select name, status from runs").fetchall() == [(directory.path.name, "FINISHED")]
    tags = dict(base.execute("select key, value from tags").fetchall())
    assert tags["penstock.run_id"] == "run-1-abcd"
    assert tags["penstock.lineage"] == "1 from step 3"
    assert tags["penstock.outcome"] == "finished"


def test_the_run_file_is_its_parameters_without_secrets(database) -> None:
    _, base = database
    params = dict(base.execute("select key, value from params").fetchall())
    assert params["learner.learning_rate"] == "1e-05"
    assert params["store.url"] == "redis://:***@host/0"
