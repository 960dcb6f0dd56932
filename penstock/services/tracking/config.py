"""The run file's `tracking` section: who else is told of a run's metrics."""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from penstock.services.settings import Section, on_resume

_CLOUD = "https://api.wandb.ai"


class WandbSection(Section):
    """Weights & Biases. A run keeps its id when it is resumed; who you are comes from `wandb login`, or from
    WANDB_API_KEY in the environment."""

    left_out: ClassVar[Mapping[str, str]] = {
        "api_key": "a secret does not belong in a run file; run `wandb login`, or set WANDB_API_KEY",
        "base_url": "WANDB_BASE_URL in the environment says where a server of your own is",
        "id": "a run's id is made by Penstock, so that it is the same after a resume",
        "dir": "files lie in wandb/ of the run directory",
    }

    project: str = on_resume(..., min_length=1, max_length=128)
    """Project, which is made when it is not there."""
    entity: str | None = on_resume(None)
    """User or team; by default your own."""
    mode: Literal["online", "offline"] = on_resume("online")
    """offline writes into the run directory only; `wandb sync` sends it later."""
    tags: tuple[str, ...] = on_resume(())
    """Words to find the run by."""


class MlflowSection(Section):
    """MLflow. A run keeps its MLflow run when it is resumed."""

    left_out: ClassVar[Mapping[str, str]] = {
        "username": "MLFLOW_TRACKING_USERNAME in the environment says it",
        "password": "a secret does not belong in a run file; set MLFLOW_TRACKING_PASSWORD",
        "token": "a secret does not belong in a run file; set MLFLOW_TRACKING_TOKEN",
    }

    tracking_uri: str | None = on_resume(None)
    """Server, `http://host:5000`, or database, `sqlite:////path/mlflow.db`; by default MLFLOW_TRACKING_URI of the
    environment."""
    experiment: str = on_resume("penstock", min_length=1)
    """Experiment, which is made when it is not there."""

    @property
    def where(self) -> str | None:
        """The tracking URI that counts; None when nobody says one."""
        return self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None


class TrackingSection(Section):
    """Who is told of metrics and events besides the run directory. A tracker that fails or hangs is given up with a
    warning; the run goes on."""

    tensorboard: bool = on_resume(True)
    """Write event files into tensorboard/ of the run directory: `tensorboard --logdir runs`."""
    wandb: WandbSection | None = on_resume(None)
    """Weights & Biases, `{project: NAME}`; needs the package wandb."""
    mlflow: MlflowSection | None = on_resume(None)
    """MLflow, `{tracking_uri: …}`; needs the package mlflow or mlflow-skinny."""
    prometheus: bool = on_resume(True)
    """Export metrics through Ray for Prometheus to scrape; `penstock status` says where."""
    prometheus_seconds: float = on_resume(5.0, ge=1, le=10)
    """Seconds between exports. At most 10, after which a Ray cluster may forget what is not said again; one that is
    started for the run passes on metrics as often."""


def problems(section: TrackingSection) -> Iterator[tuple[str, str, str]]:
    """What keeps a tracker from working, as (key within the section, text, remedy)."""
    for name in ("wandb", "mlflow"):
        if getattr(section, name) is not None and importlib.util.find_spec(name) is None:
            yield name, f"the package {name} is not installed", f"pip install {name}"
    if section.mlflow is not None and section.mlflow.where is None:
        remedy = "set it, for example to sqlite:////path/mlflow.db, or set MLFLOW_TRACKING_URI"
        yield "mlflow.tracking_uri", "nothing says where MLflow is", remedy


def doubts(section: TrackingSection) -> Iterator[tuple[str, str, str]]:
    """The same for what only seems to: nobody is asked over the network."""
    if section.wandb is not None and section.wandb.mode == "online" and not _known_to_wandb():
        remedy = "run `wandb login`, set WANDB_API_KEY, or set tracking.wandb.mode to offline"
        yield "wandb", "nobody seems to be logged in to Weights & Biases here; the run would go on without it", remedy


def _known_to_wandb() -> bool:
    """Whether there is a key for the server that would be asked: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", _CLOUD)).hostname or ""
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    return False
