"""All trackers of a run together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import yaml

from penstock.services.rundir import RunDir
from penstock.services.tracking.config import TrackingSection
from penstock.services.tracking.feed import Feed, Tracker
from penstock.services.tracking.outside import CLOSE_SECONDS, Outside
from penstock.services.tracking.tensorboard import TensorBoard
from penstock.services.versions import Version

_WANDB = "penstock.services.tracking.wandb_client:WandbClient"
_MLFLOW = "penstock.services.tracking.mlflow_client:MlflowClient"


class Feeds:
    """Tells every tracker what a run records. Nothing here waits but `close`."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._feeds = [Feed(tracker) for tracker in trackers]

    def begin(self, version: Version) -> None:
        for feed in self._feeds:
            feed.begin(version)

    def step(self, version: Version, metrics: Mapping[str, float], at: float) -> None:
        for feed in self._feeds:
            feed.step(version, metrics, at)

    def event(self, version: Version, kind: str, message: str, at: float) -> None:
        for feed in self._feeds:
            feed.event(version, kind, message, at)

    def troubles(self) -> list[str]:
        """What a person should know, since the last call."""
        return [trouble for feed in self._feeds for trouble in feed.troubles()]

    def close(self, outcome: str, deadline: float = CLOSE_SECONDS + 5.0) -> None:
        """Let all finish, beside each other, for `deadline` seconds at most."""
        until = time.monotonic() + deadline
        for feed in self._feeds:
            feed.end(outcome)
        for feed in self._feeds:
            feed.wait(max(0.0, until - time.monotonic()))


def trackers(section: TrackingSection, directory: RunDir, run_id: str) -> Iterator[Tracker]:
    """Those that the run file asks for. What they are told of the run file is config.yaml, where secrets are masked."""
    config = directory.config.read_text()
    run = {"run_dir": str(directory.path), "run_id": run_id, "config": yaml.safe_load(config)}
    if section.tensorboard:
        yield TensorBoard(directory.tensorboard, config)
    if (wandb := section.wandb) is not None:
        settings = {"project": wandb.project, "entity": wandb.entity, "mode": wandb.mode, "tags": list(wandb.tags)}
        yield Outside("Weights & Biases", _WANDB, directory.log("wandb"), run | settings)
    if (mlflow := section.mlflow) is not None:
        settings = {"tracking_uri": mlflow.where or "", "experiment": mlflow.experiment}
        yield Outside("MLflow", _MLFLOW, directory.log("mlflow"), run | settings)
