"""Step rewards from the trajectory to the advantages of its tokens, by hand."""

from __future__ import annotations

import builders
import numpy as np
import pytest

from penstock.learner.algorithms.bound import bind
from penstock.learner.assemble import Moment, assemble, signal_in
from penstock.learner.config import AlgorithmSection
from penstock.learner.feed import Fed
from penstock.learner.report import group_metrics
from penstock.services.codec import decode, encode
from penstock.services.trajectory import Group, Sampling, StepScore, Trajectory
from penstock.services.versions import FIRST, Version

NOW = Moment(FIRST, {}, 1, mask_beyond=False)
RETURNS = {
    "name": "grpo",
    "baseline": {"kind": "group_mean"},
    "credit": {"kind": "discounted_return", "gamma": 0.5},
}


def answer(reward, *steps, actions=(True, True, True, True)):
    return Trajectory(
        completion=builders.completion(tokens=range(4, 4 + len(actions)), actions=np.array(actions)),
        reward=reward,
        parts={"process": reward},
        unscored=None if reward is not None else "reward 'process': timed out after 5.0 s",
        steps=tuple(StepScore(token=token, score=score) for token, score in steps),
    )


def group(*answers):
    return Group(prompt=builders.prompt(), sampling=Sampling(max_tokens=8), trajectories=answers)


def test_by_hand_steps_and_outcome_become_returns_of_every_token():
    # Steps worth 1/2 up to the first token and 1/4 up to the third; outcome 1; the second token is a tool's.
    judged = answer(1.0, (0, 0.5), (2, 0.25), actions=(True, False, True, True))
    batch = assemble([group(judged, answer(0.0))], bind(AlgorithmSection.model_validate(RETURNS)), NOW)
    rewards, nothing = batch.split(batch.token_rewards)
    assert rewards.tolist() == [0.5, 0.0, -0.25, 1.0]
    assert nothing.tolist() == [0.0] * 4
    # In all 1 1/4 and 0: mean 5/8. Returns at γ = 1/2: 1; −1/4 + 1/2 = 1/4; 1/2 + 1/8 = 5/8.
    found, other = batch.split(batch.advantages)
    assert found.tolist() == [0.0, 0.0, -0.375, 0.375]
    assert other.tolist() == [-0.625] * 4
    assert batch.rewards.tolist() == [1.25, 0.0]


def test_by_hand_a_step_that_ends_in_a_tools_tokens_counts_for_the_action_before_them():
    judged = answer(0.0, (2, 1.0), actions=(True, True, False, True))
    batch = assemble([group(judged, answer(0.0))], bind(AlgorithmSection.model_validate(RETURNS)), NOW)
    # Returns: last action 0; second 1; first 1/2. Baseline: (1 + 0)/2.
    assert batch.split(batch.advantages)[0].tolist() == [0.0, 0.5, 0.0, -0.5]


def test_with_the_outcome_as_credit_every_token_answers_for_the_whole_of_it():
    cells = RETURNS | {"credit": {"kind": "outcome"}}
    batch = assemble(
        [group(answer(1.0, (0, 0.5), (2, 0.25)), answer(0.0))], bind(AlgorithmSection.model_validate(cells)), NOW
    )
    assert [a.tolist() for a in batch.split(batch.advantages)] == [[0.625] * 4, [-0.625] * 4]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((answer(0.0, (1, 0.5)), answer(0.0, (1, 0.25))), True),
        ((answer(1.0, (1, 0.0)), answer(0.0, (3, 1.0))), False),  # both earn 1 in all
        ((answer(0.0, (1, 0.5)), answer(None)), False),
    ],
)
def test_what_steps_earn_in_all_decides_whether_a_group_has_signal(answers, expected):
    assert signal_in(group(*answers)) is expected


def test_the_task_reward_of_an_answer_ends_with_its_last_step():
    assert answer(1.0, (0, 9.0), (2, 0.25)).task_reward == 1.25
    assert answer(1.0).task_reward == 1.0
    assert answer(None).task_reward is None


def test_what_steps_earn_is_in_the_rewards_that_are_reported():
    fed = Fed(Version(0, 1))
    fed.groups = [group(answer(0.0, (1, 0.5)), answer(0.0, (0, 0.25), (3, 1.0)), answer(None))]
    found = group_metrics(fed)
    assert (found["reward/mean"], found["reward/std"], found["reward/solved"]) == (0.75, 0.25, 0.5)


def test_groups_with_signal_are_counted_by_their_rewards_also_where_all_are_kept():
    fed = Fed(Version(0, 1))
    fed.groups = [group(answer(1.0), answer(1.0)), group(answer(0.0), answer(0.0)), group(answer(0.0), answer(1.0))]
    fed.passed_over = [group(answer(0.0), answer(0.0))]
    assert group_metrics(fed)["reward/with_signal"] == 0.25


def test_steps_survive_the_way_through_the_store():
    found = decode(encode(group(answer(1.0, (0, 0.5), (2, 0.25)))), Group).trajectories[0]
    assert [(step.token, step.score) for step in found.steps] == [(0, 0.5), (2, 0.25)]
