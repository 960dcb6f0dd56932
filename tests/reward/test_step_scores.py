"""Rules that judge an answer step by step: from what a function returns to the trajectory's steps."""

from __future__ import annotations

import math

import pytest
from builders import completion, prompt

from penstock.reward import wire
from penstock.reward.child import call
from penstock.reward.config import RewardSection, RuleSection
from penstock.reward.scorer import GroupScorer, add_up

FUNCTIONS = '''
def by_lines(completions, completion_ids, **columns):
    """A step per half of the answer; the second is twice as good."""
    return [{"reward": 1.0, "steps": [(len(ids) // 2 - 1, 0.25), (len(ids) - 1, 0.5)]} for ids in completion_ids]

def only_steps(completions, **columns):
    return [{"steps": [[0, 0.5]]} for _ in completions]

def beyond(completions, completion_ids, **columns):
    return [{"reward": 1.0, "steps": [[len(ids), 0.5]]} for ids in completion_ids]

def sees(completions, parts, **columns):
    return [value * 10 for value in parts["process"]]
'''


@pytest.fixture
def judged(tmp_path):
    """Trajectories of the answers `texts`, one token per letter, by rules of FUNCTIONS."""
    (tmp_path / "prm.py").write_text(FUNCTIONS)
    made = []

    def judge(*texts, **rules):
        parts = {name: RuleSection(**fields) for name, fields in rules.items()}
        made.append(GroupScorer(RewardSection(rules=parts, folder=str(tmp_path))))
        members = [completion(tokens=range(2, 2 + len(text)), text=text) for text in texts]
        return made[-1].submit(prompt(answer="four"), members).result(60)

    yield judge
    for one in made:
        one.close()


def steps_of(trajectory):
    return [(step.token, step.score) for step in trajectory.steps]


def test_scores_of_steps_reach_the_trajectory_with_the_weight_of_their_rule(judged):
    one, two = judged("four", "fourty", process={"rule": "prm:by_lines", "weight": 0.5}, exact={})
    assert steps_of(one) == [(1, 0.125), (3, 0.25)]
    assert steps_of(two) == [(2, 0.125), (5, 0.25)]
    assert [one.reward, two.reward] == [1.5, 0.5]
    assert one.parts == {"process": 1.0, "exact": 1.0}


def test_steps_alone_are_a_judgement_and_an_outcome_of_none_adds_nothing(judged):
    (one,) = judged("four", process={"rule": "prm:only_steps", "weight": 2.0})
    assert one.reward == 0.0
    assert one.parts == {"process": None}
    assert steps_of(one) == [(0, 1.0)]


def test_a_rule_of_weight_zero_is_measured_and_its_steps_train_nothing(judged):
    (one,) = judged("four", process={"rule": "prm:by_lines", "weight": 0}, exact={})
    assert one.steps == ()
    assert one.reward == 1.0
    assert one.parts == {"process": 1.0, "exact": 1.0}


def test_later_rules_see_the_outcome_of_a_rule_with_steps(judged):
    (one,) = judged("four", process={"rule": "prm:by_lines"}, sees={"rule": "prm:sees"})
    assert one.parts["sees"] == 10.0


def test_two_rules_with_steps_leave_the_answer_unscored_and_say_the_remedy(judged):
    (one,) = judged("four", a={"rule": "prm:by_lines"}, b={"rule": "prm:only_steps"})
    assert one.reward is None
    assert one.unscored == "rewards 'a' and 'b' both judge steps; give all of them but one a weight of 0"


def test_a_step_beyond_the_answer_leaves_it_unscored_with_the_cause(judged):
    (one,) = judged("four", process={"rule": "prm:beyond"})
    assert one.unscored == "reward 'process': 'steps': last tokens must rise and lie within 0 to 3, returned [4]"
    assert one.steps == ()


def entry(value):
    """What the rule process makes of one returned value, for an answer of four tokens."""
    request = wire.Call("process", "p", ["four"], [[1, 2, 3, 4]], {}, {})
    (found,) = call(lambda completions: [value], {}, request)
    return found


def test_whole_numbers_of_any_kind_are_tokens_and_any_numbers_are_scores():
    import numpy as np

    pairs = np.array([[0, 1], [3, 2]])
    assert entry({"reward": True, "steps": list(pairs)}) == wire.Stepwise(1.0, [(0, 1.0), (3, 2.0)])


@pytest.mark.parametrize("steps", [None, [], ()])
def test_a_dict_without_steps_is_its_reward(steps):
    assert entry({"reward": 0.5, "steps": steps}) == 0.5
    assert entry({"reward": None, "steps": steps}) is None


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ({"steps": [[0, 1.0], [0, 2.0]]}, "'steps': last tokens must rise and lie within 0 to 3, returned [0, 0]"),
        ({"steps": [[2, 1.0], [1, 2.0]]}, "'steps': last tokens must rise and lie within 0 to 3, returned [2, 1]"),
        ({"steps": [[-1, 1.0]]}, "'steps': last tokens must rise and lie within 0 to 3, returned [-1]"),
        ({"steps": [[1, math.nan]]}, "'steps': the score at token 1: returned nan, which is no finite number"),
        ({"steps": [[1, None]]}, "'steps': the score at token 1: returned None, which is no number"),
        ({"steps": [[1.5, 1.0]]}, "'steps' is a list of pairs (last token, score), returned [[1.5, 1.0]]"),
        ({"steps": [3]}, "'steps' is a list of pairs (last token, score), returned [3]"),
        ({"steps": 3}, "'steps' is a list of pairs (last token, score), returned 3"),
        ({"reward": "good"}, "'reward': returned 'good' (str), which is no number"),
        ({"score": 1.0}, "returned a dict with the key 'score'; it has the keys 'reward' and 'steps'"),
    ],
)
def test_what_is_no_judgement_of_steps_is_a_cause(value, cause):
    assert entry(value) == cause


def test_a_failed_part_outweighs_the_steps_of_another():
    judged = add_up({"a": 1.0, "b": 1.0}, {"a": wire.Stepwise(1.0, [(0, 1.0)]), "b": "timed out"})
    assert (judged.reward, judged.steps, judged.unscored) == (None, (), "reward 'b': timed out")
