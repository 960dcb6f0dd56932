"""What `penstock check` says of trackers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from check_parts import check_overridden

FOUND = importlib.util.find_spec


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """Takes packages away."""

    def hide(*names: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in names else FOUND(name))

    return hide


def test_a_tracker_whose_package_is_missing_is_an_error_with_the_remedy(place: Path, without) -> None:
    without("mlflow", "wandb")
    found = check_overridden(place, "tracking.mlflow={tracking_uri: 'sqlite:////x.db'}", "tracking.wandb={project: p}")
    for name in ("mlflow", "wandb"):
        finding = found[f"tracking.{name}"]
        assert finding.level == "error"
        assert finding.remedy == f"pip install {name}"


def test_the_same_for_fine_tuning_and_not_for_an_evaluation(place: Path, without) -> None:
    without("wandb")
    assert "tracking.wandb" in check_overridden(place, "tracking.wandb={project: p}", stage="sft")
    assert "tracking.wandb" not in check_overridden(place, "tracking.wandb={project: p}", stage="evaluate")


def test_nobody_logged_in_is_a_warning(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    finding = check_overridden(place, "tracking.wandb={project: p}")["tracking.wandb"]
    assert finding.level == "warning"
    assert "wandb login" in finding.remedy
    assert "tracking.wandb" not in check_overridden(place, "tracking.wandb={project: p, mode: offline}")


def test_a_project_that_stands_in_the_place_of_the_section_is_told_how_it_was_meant(place: Path) -> None:
    finding = check_overridden(place, "tracking.wandb=my-project")["tracking.wandb"]
    assert finding.nearest == "tracking.wandb: {project: my-project}"


def test_a_key_that_holds_a_secret_is_refused_with_the_place_where_it_belongs(place: Path) -> None:
    finding = check_overridden(place, "tracking.wandb={project: p, api_key: abc}")["tracking.wandb.api_key"]
    assert "WANDB_API_KEY" in str(finding) or "environment variable" in str(finding)
    assert "abc" not in str(finding)
    found = check_overridden(place, "tracking.mlflow={tracking_uri: 'http://ada:secret@h:5000'}")
    assert found["tracking.mlflow.tracking_uri"].level == "error"
    assert "secret@" not in str(found["tracking.mlflow.tracking_uri"])


def test_a_mistyped_key_is_told_the_nearest(place: Path) -> None:
    assert check_overridden(place, "tracking.tensorbord=false")["tracking.tensorbord"].nearest == "tracking.tensorboard"
    finding = check_overridden(place, "tracking.wandb={project: p, mode: of_line}")["tracking.wandb.mode"]
    assert finding.nearest == "'offline'"
