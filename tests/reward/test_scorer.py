"""From completions to trajectories: weights, failures, abstentions, the reference, many groups at a time."""

from __future__ import annotations

import inspect
import threading
import time
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest
from builders import completion, prompt
from hypothesis import given
from hypothesis import strategies as st

from penstock.reward.config import RewardSection, RuleSection
from penstock.reward.metrics import METRICS
from penstock.reward.sandbox import RewardError
from penstock.reward.scorer import GroupScorer, add_up
from penstock.services.contracts import Scorer
from penstock.services.metrics import describe


@pytest.fixture
def scorer(folder):
    made = []

    def make(reference=None, workers=1, **rules):
        parts = {name: RuleSection(**fields) for name, fields in rules.items()}
        made.append(GroupScorer(RewardSection(rules=parts, folder=str(folder), workers=workers), reference))
        return made[-1]

    yield make
    for one in made:
        one.close()


def judge(made, the_prompt, *texts):
    members = [completion(tokens=range(2, 2 + len(text)), text=text) for text in texts]
    return made.submit(the_prompt, members).result(60)


def test_the_reward_is_the_weighted_sum_of_the_parts(scorer):
    made = scorer(exact={}, contains={"weight": 0.25})
    one, two, three = judge(made, prompt(answer="4"), "4", "it is 4", "5")
    assert [t.reward for t in (one, two, three)] == [1.25, 0.25, 0.0]
    assert two.parts == {"exact": 0.0, "contains": 1.0}
    assert two.unscored is None


def test_a_part_that_fails_leaves_the_answer_unscored_with_its_cause(scorer):
    made = scorer(exact={}, planet={"rule": "mine:boom"})
    (one,) = judge(made, prompt(answer="4"), "4")
    assert one.reward is None
    assert one.parts == {"exact": 1.0, "planet": None}
    assert one.unscored is not None
    assert one.unscored.startswith("reward 'planet': ValueError: no such planet (mine.py line ")


def test_a_part_of_weight_zero_is_measured_and_its_failure_spoils_nothing(scorer):
    made = scorer(exact={}, planet={"rule": "mine:boom", "weight": 0}, long={"rule": "mine:no_kwargs", "weight": 0})
    (one,) = judge(made, prompt(answer="4"), "4")
    assert one.reward == 1.0
    assert one.parts == {"exact": 1.0, "planet": None, "long": 1.0}


def test_a_timeout_is_named_as_one(scorer):
    made = scorer(slow={"rule": "mine:sleep", "timeout": 0.5})
    (one,) = judge(made, prompt(), "4")
    assert one.unscored == "reward 'slow': timed out after 0.5 s"


def test_an_abstention_adds_nothing(scorer):
    made = scorer(exact={}, shy={"rule": "mine:abstain", "weight": 5})
    (one,) = judge(made, prompt(answer="4"), "4")
    assert one.reward == 1.0
    assert one.parts == {"exact": 1.0, "shy": None}


def test_an_answer_that_every_rule_abstained_from_is_unscored(scorer):
    (one,) = judge(scorer(shy={"rule": "mine:abstain"}), prompt(), "4")
    assert one.reward is None
    assert one.unscored == "every rule abstained"


def test_a_later_part_sees_the_earlier_ones(scorer):
    made = scorer(exact={}, length={"args": {"accuracy": "exact"}})
    trajectories = judge(made, prompt(answer="44"), "44", "4", "444")
    # Lengths 2, 1, 3: λ = 0, .5, −.5; only the first is correct, wrong ones get at most 0.
    assert [t.parts["length"] for t in trajectories] == [0.0, 0.0, -0.5]


def test_rewards_see_the_prompt_as_the_data_has_it(scorer):
    chat = [{"role": "user", "content": "2+2"}]
    made = scorer(chat={"rule": "mine:same_chat"})
    (one,) = judge(made, prompt(answer="4", prompt=chat), "4")
    assert one.reward == 1.0


def test_groups_are_judged_side_by_side(scorer):
    made = scorer(workers=4, later={"rule": "mine:later"})
    futures = [made.submit(prompt(i), [completion()] * 2) for i in range(20)]
    assert [[t.reward for t in f.result(60)] for f in futures] == [[0.25, 0.25]] * 20
    assert made.stats()["scorer/groups"] == 20


def test_stats_count_failures_by_part_under_declared_names(scorer):
    made = scorer(exact={}, planet={"rule": "mine:boom"}, gone={"rule": "mine:die"})
    judge(made, prompt(answer="4"), "4", "5")
    stats = made.stats()
    assert stats["scorer/failed/planet"] == 2
    assert stats["scorer/failed/exact"] == 0
    assert stats["scorer/restarts"] == 1
    assert stats["scorer/seconds"] > 0
    assert all(describe(name, METRICS) for name in stats)


def test_a_scorer_has_the_calls_of_the_contract(scorer):
    made = scorer(exact={})
    for name in ("submit", "close"):
        mine, wanted = (inspect.signature(getattr(kind, name)).parameters for kind in (type(made), Scorer))
        assert list(mine) == list(wanted)


def test_close_leaves_no_process_and_no_waiter(scorer, children):
    made = scorer(slow={"rule": "mine:sleep", "timeout": 60})
    futures = [made.submit(prompt(i), [completion()]) for i in range(3)]
    time.sleep(0.3)
    made.close()
    for future in futures:
        with pytest.raises((CancelledError, RewardError)):
            future.result(1)
    assert not children()


class FakeReference:
    """Gives −1 for every token, when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.closed = False
        self.tokens_per_second = 7.0

    def submit(self, the_prompt, completions):
        future: Future[list[np.ndarray]] = Future()

        def work() -> None:
            self.go.wait(30)
            if self.closed:
                future.set_exception(ValueError("no model"))
            else:
                future.set_result([np.full(len(c.tokens), -1, np.float32) for c in completions])

        threading.Thread(target=work).start()
        return future

    def close(self) -> None:
        self.closed = True
        self.go.set()


def test_the_reference_comes_with_the_reward_whichever_is_slower(scorer):
    reference = FakeReference()
    made = scorer(reference, exact={})
    slow = made.submit(prompt(answer="x"), [completion((1, 2, 3))])
    time.sleep(0.2)
    assert not slow.done()
    reference.go.set()
    (one,) = slow.result(30)
    assert one.reference_logprobs.tolist() == [-1, -1, -1]
    (two,) = made.submit(prompt(answer="x"), [completion((1,))]).result(30)
    assert two.reference_logprobs.tolist() == [-1]
    assert made.stats()["scorer/reference_tokens_per_second"] == 7.0


def test_a_reference_that_fails_is_an_error_and_no_unscored_answer(scorer):
    reference = FakeReference()
    made = scorer(reference, exact={})
    future = made.submit(prompt(answer="x"), [completion()])
    reference.close()
    with pytest.raises(ValueError, match="no model"):
        future.result(30)


@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.tuples(st.sampled_from([0.0, 1.0, 0.5, -2.0]), st.one_of(st.none(), st.just("broken"), st.floats(-9, 9))),
        min_size=1,
    )
)
def test_a_reward_is_given_exactly_when_no_weighted_part_failed_and_one_spoke(entries):
    judged = add_up({k: w for k, (w, _) in entries.items()}, {k: e for k, (_, e) in entries.items()})
    counted = [(w, e) for w, e in entries.values() if w != 0]
    expected = not any(e == "broken" for _, e in counted) and any(e is not None for _, e in counted)
    assert (judged.reward is not None) == expected
    assert (judged.unscored is None) == expected
    if expected:
        assert judged.reward == pytest.approx(sum(w * e for w, e in counted if e is not None))
    assert judged.parts == {k: None if e == "broken" else e for k, (_, e) in entries.items()}
