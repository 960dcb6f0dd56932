"""A checkpoint of two ranks loaded by one, and of one by two, at the same ZeRO stage and from and to none: the weights
bit by bit, and the next update."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from bombs import Trap, forms
from learner_parts import on_two_ranks, same, tiny_model
from test_engine import ROWS

from penstock.learner import checkpoints, ranks, universal
from penstock.learner.config import LearnerSection
from penstock.learner.engines import Engines
from penstock.services.contracts import PenstockError
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import window_outputs
from penstock.services.replay import LedgerMemo
from penstock.services.versions import Version

pytestmark = pytest.mark.engine
LAYOUTS = (
    ("float32", 0, 0),
    ("float32", 1, 1),
    ("float32", 2, 2),
    ("float32", 3, 3),
    ("bfloat16", 1, 1),
    ("bfloat16", 3, 3),
    ("float32", None, None),
    ("float32", 0, 2),
    ("float32", 0, 3),
    ("float32", 1, 0),
)
"""Format, and the ZeRO stage of one rank and of two; None is what is taken when none is named."""
VERSION = Version(0, 1)
MEMO = LedgerMemo(1, 0, {}, (), {})


def engines_of(dtype, stage, count, seed=0):
    from penstock.learner.engine import Engine

    # An ε that is not small beside gradients: their rounding is not to decide the sign of an update.
    section = LearnerSection(dtype=dtype, zero_stage=stage, ranks=count, weight_decay=0.1, eps=1e-3)
    # The bias of a value head is one number, of which the second rank at stage 3 has none.
    return Engines(Engine(LogprobModel(tiny_model(seed=seed), value_head=True), section, count))


def update(engines, count):
    """The same update on any number of ranks: each has an equal share of the same loss."""
    found = window_outputs(engines.policy, ROWS)
    engines.policy.backward(((found.values - 1).square().sum() - found.logp.sum()) / (20 * count), True)
    return engines.policy.step(1e-2)


def weights_of(engines):
    return engines.policy.snapshot(True) | engines.snapshot_values(True, lambda: None)


def written(engines, team, root):
    """The checkpoint of a run that has made two updates, and the weights before and after a third."""
    for _ in range(2):
        update(engines, team.size)
    if team.leads:
        checkpoints.begin(root, VERSION)
    team.barrier()
    engines.save(checkpoints.partial_of(root, VERSION))
    team.barrier()
    written = {"ranks": team.size, "zero_stage": engines.policy.stage, "dtype": "any"}
    facts = {**written, "config_hash": "", "updates": 2, "tokens": 1}
    if team.leads:
        checkpoints.seal(root, VERSION, MEMO, {}, facts)
    team.barrier()
    before = weights_of(engines)
    update(engines, team.size)
    return before, weights_of(engines)


def loaded(team, root, dtype, stage):
    """Weights after loading, after an update, and how many updates were counted."""
    engines = engines_of(dtype, stage, team.size, seed=5)
    universal.restore(engines, team, checkpoints.folder_of(root, VERSION))
    before = weights_of(engines)
    update(engines, team.size)
    return before, weights_of(engines), engines.policy.updates


def place(folder, ranks, layout):
    return Path(folder) / ranks / " ".join(map(str, layout))


def of_two(rank, address, folder):
    """Both ranks write a checkpoint per layout, and load that which one rank has written."""
    torch.set_num_threads(1)
    team = ranks.join(rank, 2, address, 120.0)
    results = {}
    for layout in LAYOUTS:
        dtype, _, stage = layout
        results["written", layout] = written(engines_of(dtype, stage, 2), team, place(folder, "two", layout))
        results["loaded", layout] = loaded(team, place(folder, "one", layout), dtype, stage)
    torch.save(results, Path(folder) / f"rank-{rank}.pt")
    team.barrier()


@pytest.fixture(scope="module")
def both(team):
    """What one rank has written, what two have written and loaded, and the folder."""
    with tempfile.TemporaryDirectory() as folder:
        ones = {}
        for layout in LAYOUTS:
            dtype, stage, _ = layout
            ones[layout] = written(engines_of(dtype, stage, 1), team, place(folder, "one", layout))
        twos, _ = on_two_ranks(of_two, Path(folder))
        yield ones, twos, Path(folder)


def close(one, other, dtype):
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    return one.keys() == other.keys() and all(
        torch.allclose(one[name].float(), other[name].float(), atol=tolerance, rtol=tolerance) for name in one
    )


def moved(one, other):
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_go_on_from_the_checkpoint_of_one(both, layout):
    ones, twos, _ = both
    before, after = ones[layout]
    found, updated, updates = twos["loaded", layout]
    assert same(found, before)
    assert updates == 3
    assert moved(updated, found) > 1e-3
    assert close(updated, after, layout[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_rank_goes_on_from_the_checkpoint_of_two(both, team, layout):
    _, twos, folder = both
    before, after = twos["written", layout]
    root = place(folder, "two", layout)
    dtype, stage, _ = layout
    found, updated, updates = loaded(team, root, dtype, stage)
    assert same(found, before)
    assert updates == 3
    assert moved(updated, found) > 1e-3
    assert close(updated, after, dtype)
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step-000001-lineage-0"], "nothing is left"


@pytest.mark.parametrize("form", ["torch", "pickle"])
@pytest.mark.parametrize("stage", [1, 3])
def test_a_checkpoint_without_shards_with_code_in_it_is_not_run_by_engines_that_shard(
    both, team, tmp_path, stage, form
):
    *_, folder = both
    root = place(folder, "one", ("float32", 0, 0))
    trap = Trap(tmp_path / "it ran")
    (file,) = checkpoints.folder_of(root, VERSION).rglob("*.pt")
    right = file.read_bytes()
    file.write_bytes(forms(trap)[form])
    try:
        with pytest.raises(PenstockError, match="cannot load the checkpoint"):
            loaded(team, root, "float32", stage)
    finally:
        file.write_bytes(right)
    assert not trap.sprung


@pytest.mark.parametrize(("written_at", "stage"), [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)])
def test_engines_that_have_trained_go_back_to_a_checkpoint_of_another_form(both, team, written_at, stage):
    ones, _, folder = both
    layout = ("float32", written_at, written_at)
    before, after = ones[layout]
    engines = engines_of("float32", stage, 1, seed=5)
    for _ in range(2):
        update(engines, 1)
        universal.restore(engines, team, checkpoints.folder_of(place(folder, "one", layout), VERSION))
        assert same(weights_of(engines), before)
        update(engines, 1)
        assert close(weights_of(engines), after, "float32")


@pytest.mark.parametrize("form", ["torch", "pickle"])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_with_code_in_it_is_not_run_by_the_conversion(both, team, tmp_path, stage, form):
    *_, folder = both
    root = place(folder, "two", ("float32", stage, stage))
    trap = Trap(tmp_path / "it ran")
    for file in checkpoints.folder_of(root, VERSION).rglob("*.pt"):
        right = file.read_bytes()
        file.write_bytes(forms(trap)[form])
        with pytest.raises(PenstockError, match="cannot be brought into the universal form"):
            loaded(team, root, "float32", stage)
        assert not trap.sprung
        file.write_bytes(right)
