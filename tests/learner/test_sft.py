"""Fine-tuning: the mixture's order, the loss by hand, a model that learns and loads."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from learner_parts import model_folder, tiny_model
from transformers import AutoModelForCausalLM

from penstock.learner.config import SftSection
from penstock.learner.stages.mixture import Mixture
from penstock.learner.stages.sft import updates_in
from penstock.services.data import PairRow


def source(name, count):
    return [PairRow(name, i, np.array([i], np.int32), np.array([i + 1, 0], np.int32)) for i in range(count)]


def drawn(mixture, count, seed=0):
    return [int(prompt[0]) for prompt, _ in mixture.rows(count, seed)]


def test_one_source_is_gone_through_once_per_epoch_in_a_new_order():
    mixture = Mixture([source("a", 8)], [1.0])
    rows = drawn(mixture, 16)
    assert sorted(rows[:8]) == sorted(rows[8:]) == list(range(8))
    assert rows[:8] != rows[8:]
    assert drawn(mixture, 16) == rows
    assert drawn(mixture, 16, seed=1) != rows


def test_sources_are_drawn_in_proportion_to_their_weights():
    pairs = [
        source("a", 5),
        [PairRow("b", i, np.array([100 + i], np.int32), np.array([0], np.int32)) for i in range(50)],
    ]
    rows = drawn(Mixture(pairs, [3.0, 1.0]), 40)
    assert Counter(row >= 100 for row in rows) == {False: 30, True: 10}
    assert sum(row >= 100 for row in rows[:8]) == 2


@pytest.mark.parametrize(("rows", "epochs", "batch", "updates"), [(10, 1.0, 4, 3), (10, 2.0, 4, 5), (10, 0.5, 8, 1)])
def test_the_number_of_updates_covers_every_row(rows, epochs, batch, updates):
    assert updates_in(rows, SftSection(epochs=epochs, batch_size=batch)) == updates


@pytest.mark.engine
@pytest.mark.parametrize("budget", [1000, 16])
def test_the_loss_is_the_mean_cross_entropy_over_response_tokens(team, budget):
    from penstock.learner.engine import Engine
    from penstock.learner.stages.sft import fine_tune

    pairs = [PairRow("a", i, np.array([1 + i, 2], np.int32), np.arange(3, 4 + i, dtype=np.int32)) for i in range(6)]
    reports = []
    section = SftSection(batch_size=6, micro_batch_tokens=budget, learning_rate=1e-3)
    engine = Engine(tiny_model(), section, 1)
    assert fine_tune(engine, team, Mixture([pairs], [1.0]), section, 0, reports.append) == "data_end"
    model, total, count = tiny_model(), 0.0, 0
    for pair in pairs:
        ids = torch.tensor([*pair.prompt, *pair.response])
        logp = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        for t, token in enumerate(pair.response):
            total -= logp[len(pair.prompt) - 1 + t, int(token)].item()
            count += 1
    assert reports[0]["metrics"]["sft/loss"] == pytest.approx(total / count, rel=1e-5)
    assert reports[0]["metrics"]["sft/epoch"] == 1.0


@pytest.mark.engine
def test_a_rank_learns_to_count_and_leaves_a_model_that_loads(team, tmp_path):
    from penstock.learner.stages.tuner import SftPlan, SftRank
    from penstock.services.data_config import DataSection
    from penstock.services.model_config import ModelSection

    start = model_folder(tmp_path / "start")
    rows = [{"prompt": f"{i} {i + 1}", "response": f"{i + 2} {i + 3}"} for i in range(1, 28)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plan = SftPlan(
        model=ModelSection(path=str(start)),
        data=DataSection.model_validate(
            {
                "sources": {
                    "count": {
                        "path": str(tmp_path / "data.jsonl"),
                        "columns": {"prompt": "prompt", "response": "response"},
                    }
                }
            }
        ),
        sft=SftSection(
            epochs=40, batch_size=9, learning_rate=1e-2, schedule={"kind": "cosine", "warmup_updates": 5}, zero_stage=2
        ),
        meet_at="127.0.0.1:1",
        model_folder=tmp_path / "tuned",
        cache=tmp_path / "cache",
    )
    rank = SftRank(0, plan)
    assert rank.run() == "data_end"
    assert rank.health().state == "ended"
    reports = rank.reports()
    assert len(reports) == 120
    assert reports[-1]["metrics"]["sft/loss"] < 0.3 < reports[0]["metrics"]["sft/loss"]
    assert reports[-1]["metrics"]["sft/lr"] < 1e-5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    with torch.inference_mode():
        assert model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].argmax().item() == 7


@pytest.mark.engine
def test_a_request_to_stop_ends_fine_tuning_with_the_reason(team):
    from penstock.learner.engine import Engine
    from penstock.learner.stages.sft import fine_tune

    reports = []
    section = SftSection(batch_size=2, epochs=10)
    why = fine_tune(
        Engine(tiny_model(), section, 1),
        team,
        Mixture([source("a", 4)], [1.0]),
        section,
        0,
        reports.append,
        lambda: "Ctrl-C" if len(reports) == 3 else "",
    )
    assert (why, len(reports)) == ("Ctrl-C", 3)
