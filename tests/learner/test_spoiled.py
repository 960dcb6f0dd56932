"""Batches of steps whose gradients were not finite: kept apart, the last few, and a full disk ends nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import builders
import numpy as np
import pytest
from disks import fill, small_disk

from penstock.learner import archive
from penstock.learner.archivist import moment_of
from penstock.learner.assemble import Moment
from penstock.learner.spoiled import Spoiled
from penstock.services.versions import Version

MOMENT = Moment(Version(1, 7), {1: Version(0, 5)}, 3, True)
BATCH = builders.one_answer()
TRAINED = SimpleNamespace(applied=0, metrics={"actor/pg_loss": float("nan"), "reward/mean": 0.5}, logp_start=[])


def keep(spoiled: Spoiled) -> tuple[str, str]:
    groups = [builders.group(4, (0.0, 1.0, None))]
    return spoiled.keep(MOMENT, groups, [SimpleNamespace(batch=BATCH)], TRAINED, {"kl": 0.1})


def test_every_skipped_step_has_a_folder_of_its_own_and_the_last_are_kept(tmp_path: Path) -> None:
    spoiled = Spoiled(tmp_path / "nonfinite", 2, {"learner": {}})
    kept = [keep(spoiled) for _ in range(3)]
    names = ["step-000008-lineage-1", "step-000008-lineage-1-2", "step-000008-lineage-1-3"]
    assert [(Path(folder).name, why) for folder, why in kept] == [(name, "") for name in names]
    there = archive.steps(tmp_path / "nonfinite")
    assert [folder.name for folder in there] == names[1:]
    version, batch, facts = archive.read(there[-1])
    assert (version, len(batch), moment_of(facts)) == (Version(1, 8), 1, MOMENT)
    assert facts["metrics"] == {"reward/mean": 0.5}
    assert [len(group.trajectories) for group in archive.read_groups(there[-1])] == [3]


def test_the_log_probs_of_the_step_are_kept_where_it_left_them(tmp_path: Path) -> None:
    trained = SimpleNamespace(applied=0, metrics={}, logp_start=[np.array([-1.0, np.nan], np.float32)])
    folder, _ = Spoiled(tmp_path, 2, {}).keep(MOMENT, [], [SimpleNamespace(batch=BATCH)], trained, {})
    assert archive.read(Path(folder))[1].logp_learner == pytest.approx([-1.0, np.nan], nan_ok=True)


def test_a_full_disk_is_said_and_ends_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        spoiled = Spoiled(disk / "nonfinite", 2, {})
        fill(disk)
        folder, why = keep(spoiled)
        assert folder == ""
        assert "step-000008-lineage-1 could not be written: No space left on device" in why
        assert archive.steps(disk / "nonfinite") == []
