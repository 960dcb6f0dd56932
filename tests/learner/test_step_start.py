"""What a step computes before its first update, on padded rows in micro-batches, against loops over single rows."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import step_parts
import torch
from learner_parts import tiny_model

from penstock.learner.algorithms.bound import bind
from penstock.learner.config import AlgorithmSection
from penstock.learner.critic import ValueModel, split_values, window_values
from penstock.learner.forward import policy_pass
from penstock.learner.ranks import Team
from penstock.learner.start import begin
from penstock.services.logprobs import pad_rows

ALONE = Team(0, 1, 60.0, None)


def started(section, models, micro=2, keep_logprobs=False, batch=None):
    batch = step_parts.batch_of() if batch is None else batch
    (share,) = step_parts.dealt(batch, [list(range(7))], micro)
    return begin(models, share, bind(section), ALONE, keep_logprobs)


def by_row(start, micro, name):
    """A column as one array per row, in the order of the batch."""
    rows = []
    for part in start.parts[0]:
        column = getattr(part, name)
        rows += [column[i][part.rows.responses[i]].numpy() for i in range(len(column))]
    return rows


@pytest.mark.parametrize("kind", ["own", "head"])
@pytest.mark.parametrize("micro", [7, 2, 1])
def test_advantages_and_returns_on_padded_rows_are_those_of_a_loop_over_single_rows(kind, micro):
    models = step_parts.bare_models(kind)
    batch = step_parts.batch_of()
    start = started(step_parts.ppo(kind), models, micro)
    expected = step_parts.plain_start(models, batch)
    for i, wanted in enumerate(expected):
        places = sorted(wanted)
        assert places == np.flatnonzero(batch.split(batch.mask)[i]).tolist()
        for column, name in enumerate(("logp_prox", "old_values", "advantages", "returns")):
            found = by_row(start, micro, name)[i][places]
            np.testing.assert_allclose(found, [wanted[t][column] for t in places], rtol=1e-4, atol=2e-5)


def test_only_an_answer_that_was_cut_goes_on_with_its_last_value_and_only_when_asked_to():
    models = step_parts.bare_models("own")
    credit = {"gamma": 1.0, "lam": 0.0}
    on, off = (
        started(step_parts.ppo("own", credit=credit | {"bootstrap_truncated": b}, whitening={"over": "none"}), models)
        for b in (True, False)
    )
    # λ = 0: the last token's advantage is R + V(after) − V, and V(after) counts only where it is bootstrapped.
    batch = step_parts.batch_of()
    for i, (one, other) in enumerate(zip(by_row(on, 2, "returns"), by_row(off, 2, "returns"), strict=True)):
        with torch.no_grad():
            after = float(step_parts.plain_pass(models, *batch.rows()[i])[1][-1])
        counted = np.flatnonzero(batch.split(batch.mask)[i])
        if len(counted):
            expected = after if i in step_parts.TRUNCATED else 0.0
            assert one[counted[-1]] - other[counted[-1]] == pytest.approx(expected, abs=1e-5)
            np.testing.assert_array_equal(one[counted[:-1]], other[counted[:-1]])


def test_advantages_are_whitened_over_the_tokens_of_all_micro_batches():
    section = AlgorithmSection.model_validate({"name": "grpo", "whitening": {"over": "tokens"}})
    batch = step_parts.batch_of()
    start = started(section, step_parts.bare_models("head"))
    counted = batch.advantages[batch.mask].astype(np.float64)
    expected = (counted - counted.mean()) / counted.std(ddof=1)
    found = np.concatenate(by_row(start, 2, "advantages"))
    np.testing.assert_allclose(found[batch.mask], expected, rtol=1e-5)
    assert np.all(found[~batch.mask] == 0)


def test_the_second_moment_bound_is_of_the_log_ratios_of_the_whole_batch():
    section = AlgorithmSection.model_validate({"name": "grpo", "reject": {"kind": "second_moment", "max_moment": 0.04}})
    batch, models = step_parts.batch_of(), step_parts.bare_models("head")
    start = started(section, models)
    with torch.no_grad():
        logp = [
            step_parts.plain_pass(models, prompt, response)[0].gather(1, torch.tensor(response).long()[:, None])[:, 0]
            for prompt, response in batch.rows()
        ]
    squares = np.sort((torch.cat(logp).double().numpy() - batch.logp_sampler)[batch.mask] ** 2)
    kept = max(k for k in range(1, len(squares) + 1) if squares[:k].mean() <= 0.04)
    assert kept < len(squares)
    assert squares[kept - 1] < start.bound < squares[kept]


def test_one_update_needs_no_look_ahead_unless_something_asks_for_it():
    models = step_parts.bare_models("head")
    plain = AlgorithmSection()
    assert all(part.logp_prox is None for part in started(plain, models).parts[0])
    assert started(plain, models).bound == math.inf
    assert all(part.logp_prox is not None for part in started(plain, models, keep_logprobs=True).parts[0])


def test_explained_variance_and_means_are_over_all_tokens_that_count():
    models, batch = step_parts.bare_models("own"), step_parts.batch_of()
    start = started(step_parts.ppo("own"), models)
    rows = step_parts.plain_start(models, batch)
    values = np.array([v for row in rows for _, v, _, _ in row.values()])
    returns = np.array([g for row in rows for _, _, _, g in row.values()])
    advantages = np.array([a for row in rows for _, _, a, _ in row.values()])
    expected = {
        "batch/advantage_max": np.abs(advantages).max(),
        "critic/explained_variance": 1 - (returns - values).var() / returns.var(),
        "critic/value_mean": values.mean(),
        "critic/return_mean": returns.mean(),
    }
    assert start.metrics == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("credit", ["gae", "vtrace"])
@pytest.mark.parametrize("apart", [200.0, -math.inf], ids=["out of range", "impossible under both"])
def test_a_token_without_a_usable_ratio_gets_no_credit_and_leaves_that_of_its_neighbours_alone(
    monkeypatch, credit, apart
):
    models, batch = step_parts.bare_models("own"), step_parts.batch_of()
    trust = {"trust": {"kind": "none"}} if credit == "vtrace" else {}
    section = step_parts.ppo("own", credit={"kind": credit, "gamma": 0.9, "lam": 0.8}, **trust)
    row, token = 3, 3
    place = int(batch.lengths[:row].sum()) + token
    assert batch.mask[[place - 1, place, place + 1]].all()
    without = batch.mask.copy()
    without[place] = False
    expected = started(section, models, batch=dataclasses.replace(batch, mask=without))
    sampler = batch.logp_sampler.copy()
    sampler[place] = -math.inf if apart < 0 else sampler[place] - apart
    if apart < 0:

        def impossible(model, part):
            found = policy_pass(model, part)
            return found._replace(logp=found.logp.masked_fill(part.logp_sampler == -math.inf, -math.inf))

        monkeypatch.setattr("penstock.learner.start.policy_pass", impossible)
    found = started(section, models, batch=dataclasses.replace(batch, logp_sampler=sampler))
    for name in ("advantages", "returns"):
        for one, other in zip(by_row(found, 2, name), by_row(expected, 2, name), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-5)
    # It still counts, for the denominators and for what is reported; its value is learned from nothing.
    part = found.parts[0][1]
    assert part.mask[row - 2, token]
    assert not part.credited[row - 2, token]


def test_a_new_value_model_says_0_everywhere_and_nothing_on_padding():
    rows = pad_rows([(np.array([1, 2]), np.array([3, 4, 5])), (np.array([1]), np.array([2]))])
    model = ValueModel(tiny_model().base_model)
    assert torch.all(window_values(model, rows) == 0)
    torch.nn.init.ones_(model.value_head.bias)
    found = window_values(model, rows)
    assert found.shape == (2, 5)
    before, after = split_values(found, rows)
    assert torch.all(found[1, 2:] == 0)
    assert before.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0]]
    assert after.tolist() == [1, 1]
