"""What a killed run had learned since its checkpoint is learned again, to the bit."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ray_clusters import until
from safetensors.numpy import load_file

from benchmarks.drills import RECIPE, inputs_in
from penstock.services.rundir import BATCH_FILE, RunDir

pytestmark = [pytest.mark.engine, pytest.mark.slow]

EVERY = 4
"""Steps between checkpoints."""
OVERRIDES = (
    "name=drill-exact",
    "limits.steps=100000",
    f"checkpoints.every={EVERY}",
    "archive.every=1",
    "archive.weights=true",
    "learner.learning_rate=1e-3",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDir:
    """A drill whose driver is killed some steps after a checkpoint, and that is resumed."""
    folder: Path = tmp_path_factory.mktemp("exact")
    given = [*inputs_in(folder), *OVERRIDES]
    driver = subprocess.Popen(["penstock", "train", str(RECIPE / "drill.yaml"), *given], stdout=subprocess.DEVNULL)
    until("there is a run", lambda: list(folder.glob("drill-exact-*")), 120)
    run = RunDir.open(next(folder.glob("drill-exact-*")))
    until("two steps after a checkpoint", archived(run, EVERY + 2, 0).exists, 120)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    subprocess.run(["penstock", "resume", str(run.path), f"limits.steps={EVERY + 3}"], check=True, timeout=240)
    return run


def archived(run: RunDir, step: int, lineage: int) -> Path:
    return run.archive / f"step-{step:06d}-lineage-{lineage}"


def weights(run: RunDir, step: int, lineage: int) -> bytes:
    """What the step started from."""
    return (archived(run, step, lineage) / "policy" / "model.safetensors").read_bytes()


def test_the_next_step_is_made_of_the_same_groups_in_the_same_order(run):
    before, after = (archived(run, EVERY + 1, lineage) for lineage in (0, 1))
    assert (before / "groups.msgpack").read_bytes() == (after / "groups.msgpack").read_bytes()
    one, other = (load_file(folder / BATCH_FILE) for folder in (before, after))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_it_gives_the_same_next_weights_bit_for_bit(run):
    assert weights(run, EVERY + 1, 0) == weights(run, EVERY + 1, 1), "the checkpoint"
    assert weights(run, EVERY + 2, 0) == weights(run, EVERY + 2, 1), "one step later"
    assert weights(run, EVERY + 1, 0) != weights(run, EVERY + 2, 0), "the step has changed them"


def test_what_comes_later_is_another_history_in_a_balanced_ledger(run):
    summary = json.loads(run.summary.read_text())
    assert summary["outcome"] == "finished" and summary["ledger"]["balanced"]
    assert summary["ledger"]["by_state"]["committed"] == 8 * (EVERY + 3)
