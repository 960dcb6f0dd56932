"""MLflow, called in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_LONGEST = 500
"""Characters of a parameter's value, which every version of MLflow takes."""
_MOST = 100
"""Parameters in one call."""
_STATUS = {"finished": "FINISHED", "stopped": "KILLED"}
REMEMBERED = ".mlflow-run"
"""File of the run directory that holds the id of the MLflow run, which MLflow makes and nobody may choose."""


class MlflowClient:
    """One MLflow run. MLflow keeps every value that was ever told, so that of a run that fell back to an older
    checkpoint both futures are seen; `lineage` tells them apart."""

    def __init__(
        self, run_dir: str, run_id: str, config: Mapping[str, Any], tracking_uri: str, experiment: str
    ) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        import mlflow

        self._run_dir = Path(run_dir)
        self._client = mlflow.MlflowClient(tracking_uri)
        self._id = self._resumed() or self._created(experiment, run_id)
        params = [mlflow.entities.Param(key, value[:_LONGEST]) for key, value in flat(config)]
        for first in range(0, len(params), _MOST):
            self._log_new(params[first : first + _MOST])

    def begin(self, lineage: int, step: int) -> None:
        self._client.set_tag(self._id, "penstock.lineage", f"{lineage} from step {step}")

    def step(self, lineage: int, step: int, metrics: Mapping[str, float], at: float) -> None:
        from mlflow.entities import Metric

        values = {**metrics, "lineage": float(lineage)}
        self._client.log_batch(self._id, [Metric(k, v, int(at * 1000), step) for k, v in values.items()])

    def event(self, step: int, kind: str, message: str, at: float) -> None:
        """Nothing: MLflow has no place for text over steps; events.jsonl is in the run directory."""

    def close(self, outcome: str) -> None:
        self._client.set_tag(self._id, "penstock.outcome", outcome)
        self._client.set_terminated(self._id, _STATUS.get(outcome, "FAILED"))

    def _resumed(self) -> str | None:
        """The MLflow run of an earlier start, running again."""
        remembered = self._run_dir / REMEMBERED
        if not remembered.exists():
            return None
        run: str = self._client.get_run(remembered.read_text()).info.run_id
        self._client.update_run(run, status="RUNNING")
        return run

    def _created(self, experiment: str, run_id: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else self._client.create_experiment(experiment)
        tags = {"penstock.run_id": run_id, "penstock.run_dir": str(self._run_dir)}
        run: str = self._client.create_run(where, run_name=self._run_dir.name, tags=tags).info.run_id
        (self._run_dir / REMEMBERED).write_text(run)
        return run

    def _log_new(self, params: list[Any]) -> None:
        """MLflow lets no parameter change; a resumed run keeps the values it began with."""
        known = self._client.get_run(self._id).data.params
        self._client.log_batch(self._id, params=[param for param in params if param.key not in known])


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of a run file by its dotted key, as text."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
