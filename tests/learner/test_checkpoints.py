"""Checkpoint folders: complete or not there, the newest and the best kept, errors that say what is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from penstock.learner import checkpoints
from penstock.services.contracts import PenstockError
from penstock.services.replay import LedgerMemo
from penstock.services.versions import Version

FACTS = {"ranks": 1, "zero_stage": 1, "dtype": "float32", "config_hash": "abc", "updates": 7, "tokens": 900}


def memo(issued=12):
    return LedgerMemo(issued, 8, {"stale": 1}, (10, 11, 9), {1: Version(0, 3)})


def write(root, step, lineage=0, facts=FACTS, **metrics):
    partial = checkpoints.begin(root, Version(lineage, step))
    (partial / "state").write_text("weights")
    return write_parts(root, step, lineage, facts, **metrics)


def write_parts(root, step, lineage=0, facts=FACTS, **metrics):
    version = Version(lineage, step)
    return checkpoints.seal(root, version, memo(), metrics, facts)


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path):
    written = write(tmp_path, 40, lineage=1, **{"reward/mean": 0.5, "actor/loss": float("nan")})
    found = checkpoints.read(tmp_path / "step-000040-lineage-1")
    assert found == written
    assert (found.version, found.updates, found.tokens, found.ranks) == (Version(1, 40), 7, 900, 1)
    assert found.memo == memo()
    assert found.metrics == {"reward/mean": 0.5}
    assert (found.folder / "state").read_text() == "weights"
    assert (tmp_path / "latest").read_text() == "step-000040-lineage-1"


def test_scripts_that_unpickle_are_not_left_in_a_checkpoint(tmp_path):
    """As DeepSpeed puts them there."""
    partial = checkpoints.begin(tmp_path, Version(0, 40))
    (partial / "critic").mkdir()
    for script in (partial / "zero_to_fp32.py", partial / "critic" / "zero_to_torch.py"):
        script.write_text("import torch")
    written = write_parts(tmp_path, 40)
    assert list(written.folder.rglob("*.py")) == []


def test_adaptive_coefficients_come_back_and_older_checkpoints_have_none(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2, facts=FACTS | {"coefficients": {"kl.coefficient": 0.125}})
    assert [c.coefficients for c in checkpoints.find(tmp_path)] == [{}, {"kl.coefficient": 0.125}]


def test_a_half_written_checkpoint_is_none(tmp_path):
    write(tmp_path, 1)
    (checkpoints.begin(tmp_path, Version(0, 2)) / "state").write_text("half")
    assert [c.version.step for c in checkpoints.find(tmp_path)] == [1]
    assert checkpoints.latest(tmp_path).version == Version(0, 1)


def test_what_an_interrupted_attempt_left_does_not_get_into_the_next(tmp_path):
    (checkpoints.begin(tmp_path, Version(0, 2)) / "old").write_text("half")
    assert not (write(tmp_path, 2).folder / "old").exists()


def test_a_checkpoint_counts_until_the_next_of_its_version_has_its_name(tmp_path, monkeypatch):
    """Killed anywhere in between there is one of the two, and the next attempt leaves nothing of either."""
    write(tmp_path, 1), write(tmp_path, 2)

    class Killed(BaseException):
        pass

    rename, killed_at = Path.rename, []
    for at in (1, 2):
        calls = []

        def until(self, target, at=at, calls=calls):
            calls.append(target)
            if len(calls) == at:
                raise Killed
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", until)
        with pytest.raises(Killed):
            write(tmp_path, 2, facts=FACTS | {"tokens": 901})
        monkeypatch.undo()
        newest = checkpoints.latest(tmp_path)
        killed_at.append((newest.version.step, newest.tokens, (newest.folder / "state").read_text()))
    assert killed_at == [(2, 900, "weights")] * 2
    assert write(tmp_path, 2, facts=FACTS | {"tokens": 902}).folder.name == "step-000002-lineage-0"
    assert [c.tokens for c in checkpoints.find(tmp_path)] == [900, 902]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000001-lineage-0", "step-000002-lineage-0"]


def test_what_a_dead_learner_was_writing_deleting_and_replacing_is_removed_and_what_counts_is_kept(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    (checkpoints.begin(tmp_path, Version(0, 4)) / "state").write_text("gigabytes")
    (tmp_path / "step-000001-lineage-0").rename(tmp_path / ".step-000001-lineage-0.deleting")
    shutil.copytree(tmp_path / "step-000002-lineage-0", tmp_path / ".step-000002-lineage-0.replaced")
    (tmp_path / "step-000003-lineage-0").rename(tmp_path / ".step-000003-lineage-0.replaced")
    checkpoints.remove_unfinished(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".step-000003-lineage-0.replaced", "latest", "step-000002-lineage-0"]
    assert [c.version.step for c in checkpoints.find(tmp_path)] == [2, 3]


def test_a_damaged_manifest_is_named_with_what_is_beside_it(tmp_path):
    write(tmp_path, 1), write(tmp_path, 2)
    (tmp_path / "step-000002-lineage-0" / "manifest.json").write_text('{"format": 1, "ver')
    with pytest.raises(PenstockError, match=r"step-000002.* is no complete checkpoint .*; beside it: step-000001"):
        checkpoints.latest(tmp_path)


def test_a_checkpoint_that_another_process_deletes_meanwhile_is_none(tmp_path, monkeypatch):
    write(tmp_path, 1), write(tmp_path, 2)
    read = checkpoints.read

    def late(folder):
        shutil.rmtree(tmp_path / "step-000001-lineage-0", ignore_errors=True)
        return read(folder)

    monkeypatch.setattr(checkpoints, "read", late)
    assert [c.version.step for c in checkpoints.find(tmp_path)] == [2]


def test_no_checkpoints_no_latest(tmp_path):
    assert checkpoints.latest(tmp_path) is None


def test_a_higher_lineage_is_newer_than_a_higher_step(tmp_path):
    write(tmp_path, 40)
    write(tmp_path, 30, lineage=1)
    assert checkpoints.latest(tmp_path).version == Version(1, 30)


@pytest.mark.parametrize(("which", "champion"), [("max", 2), ("min", 1)])
def test_the_newest_and_the_best_are_kept(tmp_path, which, champion):
    for step, accuracy in enumerate((0.1, 0.9, 0.5, 0.6, 0.7), 1):
        write(tmp_path, step, **{"eval/accuracy": accuracy})
    gone = checkpoints.prune(tmp_path, 2, "eval/accuracy", which)
    assert {c.version.step for c in checkpoints.find(tmp_path)} == {champion, 4, 5}
    assert len(gone) == 2
    assert not any(folder.exists() for folder in gone)


def test_without_a_best_only_the_newest_are_kept(tmp_path):
    for step in range(1, 5):
        write(tmp_path, step)
    checkpoints.prune(tmp_path, 1, None, "max")
    assert [c.version.step for c in checkpoints.find(tmp_path)] == [4]


def steps_after_pruning(root, keep_last, metric="eval/accuracy"):
    checkpoints.prune(root, keep_last, metric, "max")
    return [c.version.step for c in checkpoints.find(root)]


def test_a_checkpoint_is_kept_until_its_evaluation_has_come(tmp_path):
    write(tmp_path, 1, **{"eval/accuracy": 0.5})
    for step in (2, 3, 4):
        write(tmp_path, step)
    assert steps_after_pruning(tmp_path, 1) == [1, 2, 3, 4]
    assert checkpoints.note(tmp_path, Version(0, 2), {"eval/accuracy": 0.9, "eval/length": float("nan")})
    assert checkpoints.read(tmp_path / "step-000002-lineage-0").metrics == {"eval/accuracy": 0.9}
    assert steps_after_pruning(tmp_path, 1) == [2, 3, 4]
    checkpoints.note(tmp_path, Version(0, 4), {"eval/accuracy": 0.1})
    assert steps_after_pruning(tmp_path, 1) == [2, 4]  # the evaluation of 3 was skipped


def test_what_was_measured_of_a_version_without_checkpoint_is_ignored(tmp_path):
    written = write(tmp_path, 2)
    assert not checkpoints.note(tmp_path, Version(0, 1), {"eval/accuracy": 1.0})
    assert checkpoints.find(tmp_path) == [written]


def test_a_metric_that_nobody_measured_does_not_fill_the_disk(tmp_path):
    for step in range(1, 9):
        write(tmp_path, step)
        checkpoints.prune(tmp_path, 1, "eval/accuracy", "max")
    assert len(checkpoints.find(tmp_path)) == 1 + checkpoints.UNRATED


def test_a_folder_that_is_no_checkpoint_is_refused_with_what_is_there(tmp_path):
    write(tmp_path, 7)
    with pytest.raises(PenstockError, match=r"step-000008-lineage-0 is no complete checkpoint.*step-000007-lineage-0"):
        checkpoints.read(tmp_path / "step-000008-lineage-0")


def test_another_format_is_refused_by_its_number(tmp_path):
    folder = write(tmp_path, 7).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 9}))
    with pytest.raises(PenstockError, match="has format 9, this build reads format 1"):
        checkpoints.read(folder)


def test_what_is_not_sharded_comes_to_any_stage_and_back(tmp_path):
    for stage in range(4):
        checkpoints.must_fit(write(tmp_path, 7 + stage, facts={**FACTS, "zero_stage": 0}), stage, "float32")
        checkpoints.must_fit(write(tmp_path, 17 + stage, facts={**FACTS, "zero_stage": stage}), 0, "float32")


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ((3, "float32"), "zero_stage=1"),
        ((1, "bfloat16"), "dtype=float32"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused_with_the_remedy(tmp_path, layout, text):
    written = write(tmp_path, 7)
    checkpoints.must_fit(written, 1, "float32")
    with pytest.raises(PenstockError, match=f"{text}.*Resume with"):
        checkpoints.must_fit(written, *layout)
