"""The engine alone, on one rank: checkpoints, number formats, what is trained and what is published."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from bombs import Trap, forms
from learner_parts import free_address, same, tiny_model

from penstock.learner import ranks
from penstock.learner.config import LearnerSection
from penstock.services.contracts import DeadlinePassed, PenstockError
from penstock.services.logprobs import pad_rows, window_logprobs

pytestmark = pytest.mark.engine
ROWS = pad_rows([(np.array([0]), np.arange(1, 6)), (np.array([6]), np.arange(7, 12))])


def update(engine, rate=1e-3):
    for last in (False, True):
        logp, _ = window_logprobs(engine, ROWS)
        engine.backward(-logp.sum() / 20, last)
    return engine.step(rate)


@pytest.mark.parametrize(
    ("dtype", "stage"), [(d, s) for d in ("float32", "bfloat16") for s in range(4) if (d, s) != ("bfloat16", 0)]
)
def test_training_goes_on_from_a_checkpoint_bit_by_bit(team, tmp_path, dtype, stage):
    from penstock.learner.engine import Engine

    section = LearnerSection(dtype=dtype, zero_stage=stage, weight_decay=0.1)
    engine = Engine(tiny_model(), section, 1)
    update(engine)
    engine.save(tmp_path)
    expected = update(engine)
    loaded = Engine(tiny_model(seed=5), section, 1)
    loaded.load(tmp_path)
    assert update(loaded) == expected
    assert loaded.updates == 2
    assert same(loaded.snapshot(True), engine.snapshot(True))


def test_a_checkpoint_that_is_not_there_is_an_error_with_its_folder(team, tmp_path):
    from penstock.learner.engine import Engine

    with pytest.raises(PenstockError, match=str(tmp_path)):
        Engine(tiny_model(), LearnerSection(), 1).load(tmp_path)


@pytest.mark.parametrize("stage", range(4))
def test_no_file_of_a_checkpoint_is_run(team, tmp_path, stage):
    """Every one in turn as a bomb, and with a bomb at every place in it."""
    from penstock.learner.engine import Engine

    section = LearnerSection(zero_stage=stage)
    engine = Engine(tiny_model(), section, 1)
    update(engine)
    engine.save(tmp_path / "kept")
    trap = Trap(tmp_path / "it ran")
    files = list((tmp_path / "kept").rglob("*.pt"))
    assert len(files) == (1 if stage == 0 else 2)
    for file in files:
        right = file.read_bytes()
        state = torch.load(file, weights_only=False)
        bombs = [forms(trap)[form] for form in ("torch", "old torch", "pickle")]
        for key in state:
            buffer = io.BytesIO()
            torch.save({**state, key: trap}, buffer)
            bombs.append(buffer.getvalue())
        for bomb in bombs:
            file.write_bytes(bomb)
            with pytest.raises(PenstockError, match=r"cannot load the checkpoint.*UnpicklingError"):
                engine.load(tmp_path / "kept")
            assert not trap.sprung, file
        file.write_bytes(right)
    Engine(tiny_model(), section, 1).load(tmp_path / "kept")


@pytest.mark.parametrize("stage", range(4))
def test_whole_weights_have_hugging_face_names_without_the_tied_output_layer(team, stage):
    from penstock.learner.engine import Engine

    model = tiny_model()
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = Engine(model, LearnerSection(zero_stage=stage), 1)
    assert same(engine.snapshot(True), expected)
    assert "lm_head.weight" not in expected
    assert engine.snapshot(wanted=False) == {}


@pytest.mark.parametrize("stage", range(4))
def test_the_learning_rate_given_to_a_step_is_the_one_that_is_used(team, stage):
    from penstock.learner.engine import Engine

    engine = Engine(tiny_model(), LearnerSection(zero_stage=stage, learning_rate=1.0), 1)
    before = engine.snapshot(True)
    update(engine, 0.0)
    assert same(engine.snapshot(True), before)
    update(engine, 1e-3)
    largest = max(float((a - before[n]).abs().max()) for n, a in engine.snapshot(True).items())
    # Adam's second step moves every weight by about the rate, at most.
    assert 1e-4 < largest < 1.5e-3


@pytest.mark.parametrize("stage", [0, 2])
def test_gradients_are_clipped_to_the_norm_and_reported_before_it(team, stage):
    from penstock.learner.engine import Engine

    norms = [
        update(Engine(tiny_model(), LearnerSection(zero_stage=stage, max_grad_norm=m), 1)).grad_norm
        for m in (1e-3, 1e3)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0] > 1


def test_recomputed_activations_give_the_same_update(team):
    from penstock.learner.engine import Engine

    engines = [Engine(tiny_model(), LearnerSection(gradient_checkpointing=on), 1) for on in (False, True)]
    norms = [update(engine).grad_norm for engine in engines]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_dropout_is_off_in_training(team):
    from penstock.learner.engine import Engine

    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    engine = Engine(model, LearnerSection(), 1)
    one, other = (window_logprobs(engine, ROWS)[0] for _ in range(2))
    assert torch.equal(one, other)


def test_a_rank_that_nobody_joins_says_for_whom_it_waited():
    code = (
        "from penstock.learner import ranks\n"
        f"try:\n    ranks.join(0, 2, {free_address()!r}, 2.0)\n"
        "except Exception as e:\n    print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("RankLate learner rank 0 of 2 waited")


def test_a_process_cannot_change_its_place(team):
    with pytest.raises(PenstockError, match="rank 0 of 1 already and cannot become rank 1 of 2"):
        ranks.join(1, 2, "127.0.0.1:1", 1.0)
    assert os.environ["WORLD_SIZE"] == "1"
    assert issubclass(DeadlinePassed, PenstockError)
