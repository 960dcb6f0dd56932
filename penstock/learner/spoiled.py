"""Batches of train steps that changed nothing, because a gradient was infinite or undefined: kept to be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.learner import archive
from penstock.learner.archivist import facts_of
from penstock.learner.assemble import Moment
from penstock.learner.batch import Batch
from penstock.learner.crew import Trained
from penstock.learner.deal import Share
from penstock.learner.report import finite
from penstock.services.run_paths import step_name
from penstock.services.trajectory import Group


class Spoiled:
    """Writes such a step into a folder of its own below `folder`, as an archived step with its groups and without
    weights, and keeps the last `keep_last`. `facts` go into every one."""

    def __init__(self, folder: Path, keep_last: int, facts: Mapping[str, Any]) -> None:
        self._folder, self._keep_last, self._facts = folder, keep_last, facts
        archive.remove_unfinished(folder)

    def keep(
        self,
        moment: Moment,
        groups: Sequence[Group],
        shares: Sequence[Share],
        trained: Trained,
        coefficients: Mapping[str, float],
    ) -> tuple[str, str]:
        """(the step's folder, empty when it could not be written; why it could not). A full disk ends no run here."""
        version = moment.now.next()
        batch = archive.learned(shares, trained.logp_start) if trained.logp_start else Batch.join(_parts(shares))
        facts = facts_of(self._facts, moment, finite(trained.metrics), coefficients, trained.applied)
        folder, number = self._folder / step_name(version), 2
        while folder.exists():  # the version stands still while steps are skipped
            folder, number = self._folder / f"{step_name(version)}-{number}", number + 1
        try:
            archive.write(folder, version, batch, facts, groups)
            archive.prune(self._folder, self._keep_last)
        except OSError as error:
            return "", f"{folder} could not be written: {error.strerror}"
        return str(folder), ""


def _parts(shares: Sequence[Share]) -> list[Batch]:
    return [share.batch for share in shares]
