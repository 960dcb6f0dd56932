"""The same command given again: what becomes of a run that earlier starts left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_parts import GOOD

from penstock import api
from penstock.learner import checkpoints
from penstock.services.contracts import PenstockError
from penstock.services.replay import LedgerMemo
from penstock.services.rundir import RunDir
from penstock.services.versions import Version


@pytest.fixture
def started(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Whatever is started or resumed, in order; the runs themselves are left out."""
    calls: list[tuple[str, Path]] = []

    def conduct(_: Any, directory: RunDir, __: Any, resume: bool = False) -> None:
        calls.append(("resume" if resume else "start", directory.path))

    monkeypatch.setattr("penstock.deploy.run.train", conduct)
    (place / "run.yaml").write_text(yaml.safe_dump(GOOD, sort_keys=False))
    return calls


def train(tmp_path: Path, *overrides: str) -> Path:
    return api.train("run.yaml", [f"runs_dir={tmp_path / 'runs'}", *overrides], once=True).dir


def checkpoint(run: Path) -> None:
    version = Version(0, 5)
    checkpoints.begin(run / "checkpoints", version)
    facts = {"ranks": 1, "zero_stage": 0, "dtype": "float32", "config_hash": "", "updates": 5, "tokens": 5}
    checkpoints.seal(run / "checkpoints", version, LedgerMemo(1, 1, {}, (), {}), {}, facts)


def test_without_an_earlier_run_one_is_started(started: list[Any], tmp_path: Path) -> None:
    first = train(tmp_path)
    assert started == [("start", first)]


def test_a_run_with_a_checkpoint_is_gone_on_with_under_the_same_overrides(started: list[Any], tmp_path: Path) -> None:
    first = train(tmp_path, "learner.learning_rate=1e-5")
    checkpoint(first)
    assert train(tmp_path, "learner.learning_rate=1e-5") == first
    assert started == [("start", first), ("resume", first)]


def test_a_run_that_never_wrote_a_checkpoint_is_left_and_a_new_one_started(started: list[Any], tmp_path: Path) -> None:
    first = train(tmp_path)
    second = train(tmp_path)
    assert [what for what, _ in started] == ["start", "start"] and first != second


def test_a_run_that_has_ended_is_returned_as_it_is(started: list[Any], tmp_path: Path) -> None:
    first = train(tmp_path)
    checkpoint(first)
    RunDir.open(first).write_summary({"outcome": "finished", "goals": []})
    assert train(tmp_path) == first
    assert started == [("start", first)]


def test_an_interrupted_run_is_not_one_that_has_ended(started: list[Any], tmp_path: Path) -> None:
    first = train(tmp_path)
    checkpoint(first)
    RunDir.open(first).write_summary({"outcome": "stopped"})
    assert train(tmp_path) == first
    assert [what for what, _ in started] == ["start", "resume"]


def test_runs_of_other_names_are_none_of_its_business(started: list[Any], tmp_path: Path) -> None:
    other = train(tmp_path, "name=sort-2")
    checkpoint(other)
    mine = train(tmp_path, "name=sort")
    assert started == [("start", other), ("start", mine)]


def test_a_resume_that_ends_before_the_learner_begins_leaves_the_run_where_its_checkpoint_is(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_starts(*_: Any) -> None:
        raise PenstockError("no room in the cluster")

    monkeypatch.setattr("penstock.deploy.run.Parts", nothing_starts)
    (place / "run.yaml").write_text(yaml.safe_dump(GOOD, sort_keys=False))
    overrides = [f"runs_dir={tmp_path / 'runs'}", "tracking.tensorboard=false"]
    with pytest.raises(PenstockError, match="no room"):
        api.train("run.yaml", overrides)
    run = RunDir.newest(tmp_path / "runs")
    assert json.loads(run.summary.read_text())["steps"] == 0
    checkpoint(run.path)
    with pytest.raises(PenstockError, match="no room"):
        api.resume(run.path)
    summary = json.loads(run.summary.read_text())
    assert (summary["version"], summary["steps"], summary["steps_of_this_start"]) == ("0.5", 5, 0)
