"""PPO's loss and gradient on DeepSpeed, policy and values, are those of plain torch."""

from __future__ import annotations

import pytest
import step_parts

from penstock.learner.config import LearnerSection
from penstock.learner.tally import Tally

pytestmark = pytest.mark.engine


def assert_same(found, expected):
    (policy, critic, gradients), (wanted_policy, wanted_critic, wanted) = found, expected
    assert policy == pytest.approx(wanted_policy, rel=1e-5)
    assert critic == pytest.approx(wanted_critic, rel=1e-5)
    for place in ("policy", "critic"):
        names = [name for name in wanted if name.startswith(place)]
        scale = max((float(wanted[name].abs().max()) for name in names), default=0.0)
        for name in names:
            assert float((gradients[name] - wanted[name]).abs().max()) <= 2e-5 * scale, name


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("kind", ["own", "head"])
def test_one_rank_gives_the_loss_and_gradient_worked_out_by_hand(team, kind, stage):
    old, new = step_parts.bare_models(kind), step_parts.bare_models(kind, moved=0.02)
    section = LearnerSection(zero_stage=stage)
    batch = step_parts.batch_of()
    expected = step_parts.plain_losses(old, step_parts.bare_models(kind, moved=0.02), batch)
    engines = step_parts.engines_of(new, section)
    (share,) = step_parts.dealt(batch, [list(range(7))], 2)
    tally = Tally()
    step_parts.start_and_losses(old, engines, share, step_parts.ppo(kind), team, tally)
    totals = tally.over(team)
    loss = totals.sum("actor/loss")
    assert_same((loss, totals.sum("critic/loss"), step_parts.gradients(new)), expected)
    assert 0 < totals.means()["critic/clipfrac"] < 1
