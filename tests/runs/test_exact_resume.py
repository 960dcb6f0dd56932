"""What a killed run had learned since its checkpoint is learned again, to the bit: after the learner was killed and the
run went on by itself, and after the driver was killed and somebody resumed it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import folders_of_runs, processes_of
from driven import begun, pid_of, resumed
from ray_clusters import until
from safetensors.numpy import load_file

from penstock.services.run_paths import BATCH_FILE
from penstock.services.rundir import RunDir

pytestmark = [pytest.mark.engine, pytest.mark.slow]

EVERY = 10
"""Steps between checkpoints."""
OVERRIDES = (
    "name=drill-exact",
    "limits.steps=100000",
    f"checkpoints.every={EVERY}",
    "archive.every=1",
    "archive.weights=true",
    "learner.learning_rate=1e-3",
)
LINEAGES = {0: "as it was", 1: "after the learner was killed", 2: "after the driver was killed"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDir:
    """A drill that loses its learner two steps after a checkpoint, and in the second of these steps its driver."""
    folder: Path = tmp_path_factory.mktemp("exact")
    before = folders_of_runs()
    with begun(folder, *OVERRIDES) as (_, run):
        until("two steps after a checkpoint", archived(run, EVERY + 2, 0).exists, 120)
        os.kill(pid_of("learner-0", run), signal.SIGKILL)
        until("the learner has begun again", archived(run, EVERY + 2, 1).exists, 120)
    resumed(run, f"limits.steps={EVERY + 3}")
    assert processes_of(run.path) == [] and folders_of_runs() <= before, "nothing is left of the driver that was killed"
    return run


def archived(run: RunDir, step: int, lineage: int) -> Path:
    return run.archive / f"step-{step:06d}-lineage-{lineage}"


def weights(run: RunDir, step: int, lineage: int) -> bytes:
    """What the step started from."""
    return (archived(run, step, lineage) / "policy" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("lineage", [1, 2], ids=LINEAGES.get)
def test_the_next_step_is_made_of_the_same_groups_in_the_same_order(run, lineage):
    before, after = (archived(run, EVERY + 1, at) for at in (0, lineage))
    assert (before / "groups.msgpack").read_bytes() == (after / "groups.msgpack").read_bytes()
    one, other = (load_file(folder / BATCH_FILE) for folder in (before, after))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("lineage", [1, 2], ids=LINEAGES.get)
def test_it_gives_the_same_next_weights_bit_for_bit(run, lineage):
    assert weights(run, EVERY + 1, 0) == weights(run, EVERY + 1, lineage), "the checkpoint"
    assert weights(run, EVERY + 2, 0) == weights(run, EVERY + 2, lineage), "one step later"
    assert weights(run, EVERY + 1, 0) != weights(run, EVERY + 2, 0), "the step has changed them"


def test_what_comes_later_is_another_history_in_a_balanced_ledger(run):
    summary = json.loads(run.summary.read_text())
    assert summary["outcome"] == "finished" and summary["ledger"]["balanced"]
    assert summary["version"] == f"2.{EVERY + 3}"
    assert summary["ledger"]["by_state"]["committed"] == 8 * (EVERY + 3)


@pytest.mark.story
def test_it_goes_on_with_two_ranks_from_the_same_weights(run):
    """Which shard what one had whole."""
    last = load_file(run.path / "model" / "model.safetensors")
    more = (f"limits.steps={EVERY + 6}", "learner.ranks=2")
    resumed(run, *more)
    summary = json.loads(run.summary.read_text())
    assert summary["version"] == f"3.{EVERY + 6}" and summary["ledger"]["balanced"]
    begins = load_file(archived(run, EVERY + 4, 3) / "policy" / "model.safetensors")
    assert last.keys() == begins.keys()
    for name in last:
        np.testing.assert_array_equal(last[name], begins[name], err_msg=name)
