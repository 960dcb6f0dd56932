"""Archived steps on disk: whole or not there, pruned without a trace, written beside the training."""

from __future__ import annotations

import os
import pathlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import builders
import numpy as np
import pytest
import torch

from penstock.learner import archive
from penstock.learner.archive import SavedModel
from penstock.learner.archivist import Archivist, moment_of
from penstock.learner.assemble import Moment
from penstock.learner.batch import BatchError
from penstock.learner.config import ArchiveSection
from penstock.services.contracts import DeadlinePassed, PenstockError
from penstock.services.versions import Version

BATCH = builders.one_answer(logp_learner=np.zeros(2, np.float32))
MODEL = SavedModel('{"architectures": ["Tiny"]}', {"w": torch.arange(6.0).view(2, 3).T})
MOMENT = Moment(Version(1, 7), {1: Version(0, 5)}, 3, True)


def test_what_is_written_is_read_again(tmp_path):
    groups = [builders.group(4, (0.0, 1.0, None)), builders.group(9)]
    folder = archive.write(tmp_path / "step", Version(0, 3), BATCH, {"a": 1}, groups, {archive.POLICY: MODEL})
    version, batch, facts = archive.read(folder)
    assert (version, len(batch), facts) == (Version(0, 3), 1, {"a": 1})
    assert archive.read_groups(folder) == groups
    assert archive.has_weights(folder)
    from safetensors.torch import load_file

    assert torch.equal(load_file(folder / archive.POLICY / archive.WEIGHTS)["w"], MODEL.tensors["w"])


def test_a_batch_alone_cannot_be_computed_anew(tmp_path):
    assert not archive.has_weights(archive.write(tmp_path / "step", Version(0, 3), BATCH, {}))


def test_what_is_half_written_or_half_deleted_is_no_step(tmp_path):
    archive.write(tmp_path / "step", Version(0, 3), BATCH, {})
    for name in (".step-2.writing", ".step-1.deleting"):
        archive.write(tmp_path / name, Version(0, 1), BATCH, {})
    assert archive.steps(tmp_path) == [tmp_path / "step"]
    archive.prune(tmp_path, keep_last=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".step-2.writing", "step"]  # that may be going on
    assert archive.steps(tmp_path / "nowhere") == []
    with pytest.raises(BatchError, match=r"batch\.safetensors is missing"):
        archive.read(tmp_path / "nowhere")


def test_the_oldest_are_pruned(tmp_path):
    for step in (3, 1, 2):  # a later lineage may have a lower step
        folder = archive.write(tmp_path / f"step-{step}", Version(0, step), BATCH, {})
        os.utime(folder / "batch.safetensors", ns=(0, {3: 1, 1: 2, 2: 3}[step]))
    archive.prune(tmp_path, keep_last=2)
    assert [p.name for p in archive.steps(tmp_path)] == ["step-1", "step-2"]


def test_who_lists_steps_while_they_are_pruned_sees_only_whole_ones(tmp_path):
    names = [f"step-{number:03}" for number in range(60)]
    for number, name in enumerate(names):
        archive.write(tmp_path / name, Version(0, number), BATCH, {})

    def lists():
        while len(found := archive.steps(tmp_path)) > 1:
            assert found == sorted(found)

    def prune():
        for left in range(59, 0, -1):
            archive.prune(tmp_path, keep_last=left)

    with ThreadPoolExecutor() as pool:
        for each in [pool.submit(lists), pool.submit(lists), pool.submit(prune)]:
            each.result(timeout=60)


def test_a_step_that_goes_while_steps_are_listed_is_none(tmp_path, monkeypatch):
    for number in range(3):
        archive.write(tmp_path / f"step-{number}", Version(0, number), BATCH, {})
    seen = pathlib.Path.stat

    def stat(path, **given):
        """Pruned by the run between the name and a look at it, whichever look that is."""
        found = seen(path, **given)
        if path.parent.name == "step-1" and (tmp_path / "step-1").exists():
            (tmp_path / "step-1").rename(tmp_path / ".step-1.deleting")
        return found

    monkeypatch.setattr(pathlib.Path, "stat", stat)
    archive.steps(tmp_path)
    assert [path.name for path in archive.steps(tmp_path)] == ["step-0", "step-2"]


def archivist(folder, deadline=10.0, **section):
    configs = {archive.POLICY: MODEL.config}
    return Archivist(folder, ArchiveSection(**({"every": 2} | section)), configs, {"learner": {}}, deadline)


def test_what_a_dead_process_has_left_half_written_is_removed_by_the_next(tmp_path):
    for name in ("step-1", ".step-2.writing", ".step-0.deleting"):
        archive.write(tmp_path / name, Version(0, 1), BATCH, {})
    archivist(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    archivist(tmp_path / "not there yet")


def test_only_the_weights_that_an_archived_step_starts_from_are_wanted(tmp_path):
    with_weights = archivist(tmp_path, weights=True)
    assert [with_weights.wants(Version(0, step)) for step in range(4)] == [False, True, False, True]
    assert not any(archivist(tmp_path).wants(Version(0, step)) for step in range(4))
    assert not archivist(tmp_path, every=0, weights=True).due(Version(0, 2))


def test_a_step_is_kept_with_its_moment_and_its_weights(tmp_path):
    keeper = archivist(tmp_path, weights=True)
    keeper.hold({archive.POLICY: MODEL.tensors})
    keeper.keep(MOMENT, [builders.group()], BATCH, {"actor/grad_norm": 0.5}, {"kl.coefficient": 0.2}, 2)
    keeper.wait()
    version, _, facts = archive.read(tmp_path / "step-000008-lineage-1")
    assert version == Version(1, 8)
    assert moment_of(facts) == MOMENT
    assert facts["applied"] == 2
    assert archive.read_facts(tmp_path / "step-000008-lineage-1") == (version, facts)
    assert (facts["coefficients"], facts["metrics"]) == ({"kl.coefficient": 0.2}, {"actor/grad_norm": 0.5})
    assert archive.has_weights(tmp_path / "step-000008-lineage-1")


def test_training_goes_on_while_a_step_is_written(tmp_path, monkeypatch):
    going, write = threading.Event(), archive.write
    monkeypatch.setattr(archive, "write", lambda *given: going.wait(10) and write(*given))
    keeper = archivist(tmp_path)
    began = time.monotonic()
    keeper.keep(MOMENT, [], BATCH, {}, {}, 1)
    assert time.monotonic() - began < 1
    assert archive.steps(tmp_path) == []
    going.set()
    keeper.wait()
    assert len(archive.steps(tmp_path)) == 1


def test_a_step_that_cannot_be_written_ends_the_run_with_the_cause(tmp_path):
    (tmp_path / "archive").write_text("a file where the folder should be")
    keeper = archivist(tmp_path / "archive")
    keeper.keep(MOMENT, [], BATCH, {}, {}, 1)
    with pytest.raises(PenstockError, match="could not be archived"):
        keeper.wait()
    keeper.wait()  # said once


def test_a_disk_that_does_not_answer_is_named_after_the_deadline(tmp_path, monkeypatch):
    going = threading.Event()
    monkeypatch.setattr(archive, "write", lambda *_: going.wait(10))
    keeper = archivist(tmp_path, deadline=0.1)
    keeper.keep(MOMENT, [], BATCH, {}, {}, 1)
    with pytest.raises(DeadlinePassed, match=r"archive-1\.8 has been written to"):
        keeper.wait()
    going.set()
