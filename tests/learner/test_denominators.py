"""Loss and gradient of a batch are the same for one rank and two, however rows are dealt out, at every ZeRO stage.

The expected values come from plain torch: one row at a time, no padding, no engine, the formula written out.
"""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import step_parts
import torch
from learner_parts import on_two_ranks, tiny_model
from step_parts import dealt

from penstock.learner import deal, ranks
from penstock.learner.algorithms.bound import bind
from penstock.learner.config import AlgorithmSection, LearnerSection

pytestmark = pytest.mark.engine
STAGES = (0, 1, 2, 3)
CELLS = {"kl": {"coefficient": 0.1}, "entropy_coefficient": 0.01, "trust": {"max_weight": 1.1}}
MAX_WEIGHT, KL, ENTROPY = 1.1, 0.1, 0.01
TEMPERATURE = 0.8


batch_of = functools.partial(step_parts.batch_of, reduction="sequence_mean")


def by_hand(batch):
    """Loss and gradients of GRPO with KL, entropy and truncated weights; sequence mean over answers."""
    model = tiny_model()
    rows = [i for i, count in enumerate(batch.counts) if count > 0]
    loss = torch.zeros(())
    columns = [batch.split(c) for c in (batch.mask, batch.logp_sampler, batch.logp_reference, batch.advantages)]
    for i in rows:
        prompt, response = batch.rows()[i]
        ids = torch.tensor([*prompt, *response])
        predicted = (model(input_ids=ids[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        terms = []
        for t, token in enumerate(response):
            mask, sampler, reference, advantage = (column[i][t] for column in columns)
            if not mask:
                continue
            distribution = predicted[len(prompt) - 1 + t]
            logp = distribution[int(token)]
            weight = min(float(torch.exp(logp.detach() - sampler)), MAX_WEIGHT)
            x = reference - logp
            entropy = -(distribution.exp() * distribution).sum()
            ratio = torch.exp(logp - logp.detach())
            terms.append(weight * -ratio * advantage + KL * (torch.exp(x) - 1 - x) - ENTROPY * entropy)
        loss = loss + torch.stack(terms).mean() / len(rows)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


def gradients_of(engine, share, team):
    """(loss, full gradients) of one step up to, not including, the update."""
    from deepspeed.utils import safe_get_full_grad

    from penstock.learner.engines import Engines
    from penstock.learner.micro import MicroBatch
    from penstock.learner.step import micro_losses
    from penstock.learner.tally import Tally

    algorithm, tally = bind(AlgorithmSection.model_validate({"name": "grpo", **CELLS})), Tally()
    (plan,) = share.mini_batches
    for place, rows in enumerate(plan):
        part = MicroBatch.of(share.batch, rows, engine.device)
        loss = micro_losses(Engines(engine), part, algorithm, math.inf, False, tally).policy
        engine.backward(loss, last=place == len(plan) - 1)
    gradients = {name: safe_get_full_grad(p).clone() for name, p in engine.module.named_parameters()}
    return tally.over(team).sum("actor/loss"), gradients


def assert_same(found, expected):
    (loss, gradients), (wanted_loss, wanted) = found, expected
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in wanted.items():
        assert float((gradients[name] - gradient).abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("micro", [7, 2, 1])
def test_one_rank_gives_the_loss_and_gradient_worked_out_by_hand(team, stage, micro):
    from penstock.learner.engine import Engine

    batch = batch_of()
    engine = Engine(tiny_model(), LearnerSection(zero_stage=stage), 1)
    (share,) = dealt(batch, [list(range(7))], micro)
    assert_same(gradients_of(engine, share, team), by_hand(batch))


OWNERS = {
    "equal": ([0, 3, 4, 6], [1, 2, 5]),
    "unequal": ([0, 1, 2, 3, 4, 6], [5]),
    "one rank without rows": ([], [0, 1, 2, 3, 4, 5, 6]),
}


def two_ranks(rank, address, folder):
    """What each of the two processes does; results are left in `folder`."""
    from penstock.learner.engine import Engine

    torch.set_num_threads(1)
    team = ranks.join(rank, 2, address, 120.0)
    results = {}
    for stage in STAGES:
        section = LearnerSection(zero_stage=stage, ranks=2, learning_rate=1e-3)
        for name, owners in OWNERS.items():
            for micro in (7, 2):
                engine = Engine(tiny_model(), section, 2)
                share = dealt(batch_of(), [list(o) for o in owners], micro)[rank]
                results[f"{stage} {name} {micro}"] = gradients_of(engine, share, team)
        results[f"{stage} nan"] = one_rank_sees_a_nan(engine, team)
        results[f"{stage} resumed"] = resumed(section, team, Path(folder) / f"checkpoint-{stage}")
    torch.save(results, Path(folder) / f"rank-{rank}.pt")
    team.barrier()


def step(engine, team, batch):
    from penstock.learner.engines import Engines
    from penstock.learner.step import train_step

    share = dealt(batch, [[0, 3, 4, 6], [1, 2, 5]], 2)[team.rank]
    return train_step(Engines(engine), share, bind(AlgorithmSection()), LearnerSection(learning_rate=1e-3), team)


def one_rank_sees_a_nan(engine, team):
    engine.step(0.0)
    before = engine.snapshot(wanted=True)
    batch = batch_of()
    advantages = batch.advantages.copy()
    advantages[np.flatnonzero(batch.mask)[0]] = np.nan  # in row 0, which rank 0 has
    result = step(engine, team, batch.with_columns(advantages=advantages))
    after = engine.snapshot(wanted=True)
    again = step(engine, team, batch)
    return {
        "applied": result.applied,
        "skipped": result.skipped,
        "unchanged": all(torch.equal(before[name], after[name]) for name in before),
        "applied afterwards": again.applied,
    }


def resumed(section, team, folder):
    """Whether training on from a checkpoint equals training on without a break."""
    from penstock.learner.engine import Engine

    engine = Engine(tiny_model(), section, 2)
    step(engine, team, batch_of(seed=1))
    engine.save(folder)
    team.barrier()
    step(engine, team, batch_of(seed=2))
    loaded = Engine(tiny_model(seed=9), section, 2)
    loaded.load(folder)
    step(loaded, team, batch_of(seed=2))
    one, other = engine.snapshot(wanted=True), loaded.snapshot(wanted=True)
    return {"same": all(torch.equal(one[name], other[name]) for name in one), "updates": loaded.updates}


@pytest.fixture(scope="module")
def pair():
    """The results of both ranks."""
    with tempfile.TemporaryDirectory() as folder:
        return on_two_ranks(two_ranks, Path(folder))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("owners", OWNERS)
@pytest.mark.parametrize("micro", [7, 2])
def test_two_ranks_give_the_loss_and_gradient_worked_out_by_hand(pair, stage, owners, micro):
    for results in pair:
        assert_same(results[f"{stage} {owners} {micro}"], by_hand(batch_of()))


@pytest.mark.parametrize("stage", STAGES)
def test_when_one_rank_sees_a_nan_both_skip_and_no_weight_changes(pair, stage):
    for results in pair:
        assert results[f"{stage} nan"] == {"applied": 0, "skipped": 1, "unchanged": True, "applied afterwards": 1}


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_go_on_from_a_checkpoint_as_if_nothing_had_happened(pair, stage):
    for results in pair:
        assert results[f"{stage} resumed"] == {"same": True, "updates": 2}


def test_a_row_that_is_dealt_elsewhere_keeps_the_weight_of_its_whole_mini_batch():
    batch = batch_of()
    shares = deal.deal(batch, [list(range(7))], 3, 16, 1, 0)

    def weights(part):
        return dict(zip(zip(part.groups, part.members, strict=True), part.weights, strict=True))

    joined = {key: weight for share in shares for key, weight in weights(share.batch).items()}
    assert joined == weights(batch)
    assert {len(share.mini_batches[0]) for share in shares} == {max(len(s.mini_batches[0]) for s in shares)}
