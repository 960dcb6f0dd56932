"""Weights & Biases, called in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

INIT_SECONDS = 60.0
"""Below the time that the run gives the process to open."""
KEPT = ("events.jsonl", "summary.json")
"""Files of the run directory that are kept with the run. W&B has a config.yaml of its own."""


class WandbClient:
    """One run over the metric `step`. W&B keeps every value that was ever told, so that of a run that fell back to an
    older checkpoint both futures are seen; `lineage` tells them apart."""

    def __init__(
        self,
        run_dir: str,
        run_id: str,
        config: Mapping[str, Any],
        project: str,
        entity: str | None,
        mode: str,
        tags: list[str],
    ) -> None:
        import wandb

        self._run_dir = Path(run_dir)
        settings = wandb.Settings(
            console="off",  # this process prints nothing that anybody would want to see there
            silent=True,
            init_timeout=INIT_SECONDS,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,  # of this process, which is not the run
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=project,
            entity=entity,
            id=run_id,
            name=self._run_dir.name,
            dir=run_dir,
            mode=mode,  # type: ignore[arg-type]  # one of its literals; the run file's section holds that
            resume="allow",
            tags=tags,
            config=dict(config),
            settings=settings,
        )
        self._run.config.update(dict(config), allow_val_change=True)
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def begin(self, lineage: int, step: int) -> None:
        """Nothing: the next values say where they belong."""

    def step(self, lineage: int, step: int, metrics: Mapping[str, float], at: float) -> None:
        self._run.log({**metrics, "step": step, "lineage": lineage, "time": at})

    def event(self, step: int, kind: str, message: str, at: float) -> None:
        """Nothing: W&B has no place for text over steps; events.jsonl is kept with the run."""

    def close(self, outcome: str) -> None:
        self._run.summary["outcome"] = outcome
        for name in KEPT:
            if (self._run_dir / name).exists():
                self._run.save(str(self._run_dir / name), base_path=str(self._run_dir), policy="now")
        self._run.finish(exit_code=0 if outcome == "finished" else 1)
