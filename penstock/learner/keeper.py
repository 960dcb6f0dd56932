"""Writes the checkpoints of the loop: state on disk first, then the promise of the ledger, then older ones go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.learner import checkpoints
from penstock.learner.checkpoints import Checkpoint
from penstock.learner.coefficients import Coefficients
from penstock.learner.crew import Crew
from penstock.services.replay import ReplayStore
from penstock.services.versions import Version

if TYPE_CHECKING:
    from penstock.learner.loop_settings import LoopSettings


class Keeper:
    """On rank 0. `save_model(folder, weights)` writes a Hugging Face folder; `beat` is told what is done."""

    def __init__(
        self,
        crew: Crew,
        store: ReplayStore,
        settings: LoopSettings,
        coefficients: Coefficients,
        save_model: Callable[[Path, dict[str, Any]], object],
        beat: Callable[[str], None],
    ) -> None:
        self._crew, self._store, self._settings = crew, store, settings
        self._coefficients, self._save_model, self._beat = coefficients, save_model, beat
        self._root = settings.checkpoints
        checkpoints.remove_unfinished(self._root)
        self.saved: Version | None = None
        """The version of the newest checkpoint."""
        self._sealed: dict[str, float] = {}
        """The coefficients in it."""
        self._observed: dict[Version, dict[str, float]] = {}
        """What was measured of versions whose checkpoint is not written yet, if it ever is."""
        self._kept = threading.Lock()
        """Over the checkpoints on disk and what was observed."""

    def resumed(self, version: Version) -> None:
        """The run goes on from the checkpoint that is `version` now."""
        self.saved, self._sealed = version, self._coefficients.all

    def has_all(self, version: Version) -> bool:
        """Whether the newest checkpoint holds `version`, and every coefficient as it is now."""
        return self.saved == version and self._sealed == self._coefficients.all

    def observe(self, version: Version, metrics: dict[str, float]) -> None:
        """Metrics of `version` that were measured elsewhere (an evaluation), for `checkpoints.keep_best`; from any
        thread, at any time. They go into the checkpoint of that version; nothing happens when there is none."""
        with self._kept:
            if checkpoints.note(self._root, version, metrics):
                self._prune()
            else:
                self._observed[version] = self._observed.get(version, {}) | metrics

    def write(
        self, version: Version, tokens: int, metrics: Mapping[str, float], weights: Mapping[str, Any]
    ) -> Checkpoint:
        """A checkpoint of `version`, after `tokens` trained tokens. `weights` are a copy of the whole weights, if there
        is one already. Its publication must have ended."""
        self._beat("writing a checkpoint")
        memo = self._store.memo(version)
        partial = checkpoints.begin(self._root, version)
        self._crew.save(partial)
        if self._settings.checkpoint.with_model:
            whole = dict(weights) or self._crew.snapshot()
            self._beat("writing the checkpoint's model")
            self._save_model(partial / "model", whole)
        self._beat("syncing the checkpoint")
        with self._kept:
            known = self._observed.get(version, {}) | dict(metrics)
            sealed = checkpoints.seal(self._root, version, memo, known, self._facts(tokens))
            # Versions before this one will have no checkpoint any more.
            self._observed.clear()
        self._beat("committing the checkpoint")
        self._store.commit(version)
        self.saved, self._sealed = version, self._coefficients.all
        with self._kept:
            self._prune()
        return sealed

    def _facts(self, tokens: int) -> dict[str, Any]:
        learner = self._settings.learner
        return {
            "ranks": self._crew.team.size,
            "zero_stage": learner.stage(self._crew.team.size),
            "dtype": learner.dtype,
            "config_hash": self._settings.config_hash,
            "updates": self._crew.engine.updates,
            "tokens": tokens,
            "coefficients": self._coefficients.values,
            "began": self._coefficients.start,
        }

    def _prune(self) -> None:
        keep = self._settings.checkpoint
        checkpoints.prune(self._root, keep.keep_last, keep.keep_best, keep.best)
