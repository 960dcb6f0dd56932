"""A rank that works says so often: at every micro-batch and every tensor, so that silence means a hang."""

from __future__ import annotations

import builders
import numpy as np
import pytest
from learner_parts import tiny_model

from penstock.learner import deal
from penstock.learner.algorithms.bound import bind
from penstock.learner.config import AlgorithmSection, LearnerSection, SftSection
from penstock.services.data import PairRow

pytestmark = pytest.mark.engine


class Diary:
    """What happens in which order: `alive`, `pass` for every call of the model, `update`."""

    def __init__(self, engine, monkeypatch):
        self.entries = []
        module, step = engine.module.base_model, engine.step
        module.register_forward_pre_hook(lambda *_: self.entries.append("pass"))
        monkeypatch.setattr(engine, "step", lambda rate: self.entries.append("update") or step(rate))

    def alive(self):
        self.entries.append("alive")


def four_rows():
    return builders.batch_of(
        12,
        4,
        prompt_tokens=np.arange(1, 5, dtype=np.int32),
        prompt_lengths=np.ones(4, np.int64),
        tokens=np.arange(1, 13, dtype=np.int32),
        lengths=np.full(4, 3),
        temperatures=np.ones(4, np.float32),
        groups=np.array([0, 0, 1, 1]),
        members=np.array([0, 1, 0, 1]),
        weights=np.full(4, 0.25),
        mask=np.ones(12, np.bool_),
        logp_sampler=np.full(12, -3.5, np.float32),
        advantages=np.tile(np.float32([1, 1, 1, -1, -1, -1]), 2),
        lags=np.zeros(12, np.int32),
        older_kv=np.zeros(12, np.bool_),
    )


def test_a_train_step_shows_life_before_every_micro_batch_and_update(team, monkeypatch):
    from penstock.learner.engine import Engine
    from penstock.learner.engines import Engines
    from penstock.learner.step import train_step

    section = LearnerSection(groups_per_step=2, mini_batches=2, epochs=2)
    engine = Engine(tiny_model(), section, 1)
    diary = Diary(engine, monkeypatch)
    # One row at a time: 4 passes for π_prox, then 2 epochs of 2 mini-batches of 2 micro-batches.
    (share,) = deal.deal(four_rows(), [[0, 1], [2, 3]], 1, 4, 2, 0)
    train_step(Engines(engine), share, bind(AlgorithmSection()), section, team, alive=diary.alive)
    minis = ["alive", "pass", "alive", "pass", "alive", "update"] * 4
    assert diary.entries == ["alive", "pass"] * 4 + minis


def test_fine_tuning_shows_life_before_every_micro_batch_and_update(team, monkeypatch):
    from penstock.learner.engine import Engine
    from penstock.learner.stages.mixture import Mixture
    from penstock.learner.stages.sft import fine_tune

    pairs = [PairRow("a", i, np.array([1, 2], np.int32), np.array([3, 4], np.int32)) for i in range(4)]
    section = SftSection(batch_size=2, micro_batch_tokens=16)
    section = section.model_copy(update={"micro_batch_tokens": 4})  # one row at a time
    engine = Engine(tiny_model(), section, 1)
    diary = Diary(engine, monkeypatch)
    fine_tune(engine, team, Mixture([pairs], [1.0]), section, 0, lambda _: None, alive=diary.alive)
    assert diary.entries == ["alive", "pass", "alive", "pass", "alive", "update"] * 2


def test_gathering_the_weights_shows_life_at_every_tensor(team):
    from penstock.learner.engine import Engine

    engine = Engine(tiny_model(), LearnerSection(), 1)
    signs = []
    assert len(engine.snapshot(True, lambda: signs.append("alive"))) == len(signs) > 10
