"""The run file's `tracking` section: what can be known to be wrong before a run."""

from __future__ import annotations

import importlib.util

import pytest
from pydantic import ValidationError

from penstock.services.tracking import config
from penstock.services.tracking.config import TrackingSection, doubts, problems


def section(**values) -> TrackingSection:
    return TrackingSection.model_validate(values)


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """No key for Weights & Biases anywhere, no word about MLflow."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    netrc.touch(mode=0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    return netrc


@pytest.fixture
def installed(monkeypatch):
    """Both packages are there, whatever this environment has."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def test_tensorboard_and_prometheus_are_on_and_the_others_are_asked_for() -> None:
    default = TrackingSection()
    assert (default.tensorboard, default.prometheus) == (True, True)
    assert (default.wandb, default.mlflow) == (None, None)
    assert list(problems(default)) == list(doubts(default)) == []


def test_one_line_is_enough(installed, nobody) -> None:
    assert section(wandb={"project": "p"}).wandb is not None
    mlflow = section(mlflow={"tracking_uri": "sqlite:////x.db"}).mlflow
    assert mlflow is not None
    assert (mlflow.where, mlflow.experiment) == ("sqlite:////x.db", "penstock")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_found_with_the_command_that_gets_it(name, monkeypatch, nobody) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None)
    asked = {"wandb": {"project": "p"}, "mlflow": {"tracking_uri": "http://h:5000"}}
    assert list(problems(section(**{name: asked[name]}))) == [
        (name, f"the package {name} is not installed", f"pip install {name}")
    ]


def test_mlflow_without_an_address_is_refused_unless_the_environment_has_one(installed, nobody, monkeypatch) -> None:
    ((key, problem, remedy),) = problems(section(mlflow={"experiment": "e"}))
    assert (key, problem) == ("mlflow.tracking_uri", "nothing says where MLflow is")
    assert "MLFLOW_TRACKING_URI" in remedy
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h:5000")
    found = section(mlflow={})
    assert list(problems(found)) == []
    assert found.mlflow is not None
    assert found.mlflow.where == "http://h:5000"


def test_wandb_without_a_login_is_doubted_and_offline_is_not(installed, nobody, monkeypatch) -> None:
    online = section(wandb={"project": "p"})
    ((key, problem, remedy),) = doubts(online)
    assert key == "wandb"
    assert "logged in" in problem
    assert "wandb login" in remedy
    assert list(doubts(section(wandb={"project": "p", "mode": "offline"}))) == []
    nobody.write_text("machine api.wandb.ai login user password x\n")
    assert list(doubts(online)) == []
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert list(doubts(online)) != []
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert list(doubts(online)) == []


@pytest.mark.parametrize("key", ["api_key", "base_url", "dir", "id"])
def test_keys_that_are_left_out_on_purpose_say_why(key) -> None:
    assert config.WandbSection.left_out[key]
    with pytest.raises(ValidationError, match="Extra inputs"):
        section(wandb={"project": "p", key: "x"})


@pytest.mark.parametrize("seconds", [0.5, 11])
def test_exports_are_neither_too_often_nor_so_seldom_that_ray_forgets(seconds) -> None:
    with pytest.raises(ValidationError):
        section(prometheus_seconds=seconds)
