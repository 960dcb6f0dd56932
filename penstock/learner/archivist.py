"""Writes archived steps in a thread of its own, one at a time, so that the training does not wait for the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.learner import archive
from penstock.learner.archive import SavedModel
from penstock.learner.assemble import Moment
from penstock.learner.batch import Batch
from penstock.learner.config import ArchiveSection
from penstock.services.contracts import DeadlinePassed, PenstockError
from penstock.services.run_paths import step_name
from penstock.services.trajectory import Group
from penstock.services.versions import Version

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]


class Archivist:
    """Keeps the steps that `archive.every` asks for. Only rank 0 has one.

    `configs` are the config.json of the models whose weights are kept, by `archive.POLICY` and `archive.VALUE`;
    `facts` go into every step. What an earlier process of the run has left half written is removed.
    """

    def __init__(
        self,
        folder: Path,
        section: ArchiveSection,
        configs: Mapping[str, str],
        facts: Mapping[str, Any],
        deadline: float,
        alive: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._folder, self._section = folder, section
        self._configs, self._facts = configs, facts
        self._deadline, self._alive = deadline, alive
        self._held: dict[str, Tensors] = {}
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        archive.remove_unfinished(folder)

    def due(self, version: Version) -> bool:
        """Whether the step that ends in `version` is to be archived."""
        return self._section.every > 0 and version.step % self._section.every == 0

    def wants(self, version: Version) -> bool:
        """Whether the step that starts from `version` is to be archived with its weights."""
        return self._section.weights and self.due(version.next())

    def hold(self, weights: Mapping[str, Tensors]) -> None:
        """The weights of a version that is wanted, whole and on the CPU, by `archive.POLICY` and `archive.VALUE`;
        nothing of one that is not."""
        self._held = dict(weights)

    def keep(
        self,
        moment: Moment,
        groups: Sequence[Group],
        batch: Batch,
        metrics: Mapping[str, float],
        coefficients: Mapping[str, float],
        applied: int,
    ) -> None:
        """Write the step that was made at `moment` from `groups`, with so many updates `applied`. Returns at once,
        unless the one before is not written yet; when that one could not be, nothing more is, and `wait` says so: the
        step that was just made is to be saved before anyone hears of it."""
        self._join()
        if self._failure is not None:
            return
        version = moment.now.next()
        facts = facts_of(self._facts, moment, metrics, coefficients, applied)
        models = {name: SavedModel(self._configs[name], held) for name, held in self._held.items()}
        kept = list(groups) if models else []
        self._thread = threading.Thread(
            target=self._write, args=(version, batch, facts, kept, models), name=f"archive-{version}", daemon=True
        )
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise."""
        return self._failure is not None

    def wait(self) -> None:
        """Until nothing is being written. Raises PenstockError when it could not be, DeadlinePassed when it hangs."""
        self._join()
        failure, self._failure = self._failure, None
        if isinstance(failure, DeadlinePassed):
            raise failure
        if failure is not None:
            raise PenstockError(f"a step could not be archived in {self._folder}: {failure}") from failure

    def _join(self) -> None:
        """Until nothing is being written, or it hangs, which is a failure, too."""
        began = time.monotonic()
        while self._thread is not None and self._failure is None:
            self._thread.join(timeout=0.5)
            if not self._thread.is_alive():
                self._thread = None
            elif time.monotonic() - began > self._deadline:
                self._failure = DeadlinePassed(
                    f"{self._thread.name} has been written to {self._folder} for {self._deadline:.0f} s "
                    "(staleness.take_deadline); the disk does not answer"
                )
                return
            else:
                self._alive("writing the archive")

    def _write(
        self,
        version: Version,
        batch: Batch,
        facts: Mapping[str, Any],
        groups: Sequence[Group],
        models: Mapping[str, SavedModel],
    ) -> None:
        try:
            archive.write(self._folder / step_name(version), version, batch, facts, groups, models)
            archive.prune(self._folder, self._section.keep_last)
        except BaseException as error:  # noqa: BLE001  (handed over whole: the loop raises it)
            self._failure = error


def facts_of(
    of_run: Mapping[str, Any],
    moment: Moment,
    metrics: Mapping[str, float],
    coefficients: Mapping[str, float],
    applied: int,
) -> dict[str, Any]:
    """What is kept of a step beside its batch; `moment_of` reads it."""
    return {
        **of_run,
        "metrics": dict(metrics),
        "coefficients": dict(coefficients),
        "applied": applied,
        "moment": {
            "now": str(moment.now),
            "forks": {str(lineage): str(version) for lineage, version in moment.forks.items()},
            "max_lag": moment.max_lag,
            "mask_beyond": moment.mask_beyond,
        },
    }


def moment_of(facts: Mapping[str, Any]) -> Moment:
    """When an archived step was made, from its facts."""
    moment = facts["moment"]
    forks = {int(lineage): Version.parse(version) for lineage, version in moment["forks"].items()}
    return Moment(Version.parse(moment["now"]), forks, moment["max_lag"], moment["mask_beyond"])
