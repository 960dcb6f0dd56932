"""The wire from a worker to its scorers: who gets a group, and what happens when a scorer is lost. Ray is a fake."""

from __future__ import annotations

import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import ray.exceptions
from builders import completion, prompt

from penstock.deploy.remote_scorer import RemoteScorer
from penstock.services.codec import encode
from penstock.services.contracts import PenstockError
from penstock.services.trajectory import Trajectory

UNAVAILABLE = ray.exceptions.ActorUnavailableError("connection lost", b"0" * 16)
DIED = ray.exceptions.ActorDiedError()
ANSWER = completion(tokens=(3, 4))


class Actor:
    """Keeps its calls open until the test answers them."""

    def __init__(self) -> None:
        self.open: list[Future] = []
        self.retries: list[int] = []
        self.score = SimpleNamespace(options=self._options)

    def _options(self, max_task_retries: int) -> SimpleNamespace:
        def remote(_prompt: bytes, _completions: list[bytes]) -> SimpleNamespace:
            self.retries.append(max_task_retries)
            self.open.append(Future())
            return SimpleNamespace(future=lambda reply=self.open[-1]: reply)

        return SimpleNamespace(remote=remote)

    def answer(self, reward: float) -> None:
        scored = Trajectory(completion=ANSWER, reward=reward, parts={"exact": reward})
        self.open.pop(0).set_result([encode(scored)])

    def fail(self, error: Exception) -> None:
        self.open.pop(0).set_exception(error)


@pytest.fixture
def actors() -> dict[str, Actor]:
    return {name: Actor() for name in ("scorer-0", "scorer-1", "scorer-2")}


def submit(scorer: RemoteScorer) -> Future:
    return scorer.submit(prompt(), [ANSWER])


def waiting(actors: dict[str, Actor]) -> list[int]:
    return [len(actor.open) for actor in actors.values()]


def until(actor: Actor) -> None:
    """Another thread sends a lost group again."""
    for _ in range(500):
        if actor.open:
            return
        time.sleep(0.01)
    raise AssertionError("nothing was sent again")


def test_each_group_goes_to_the_scorer_with_the_fewest_in_hand(actors):
    scorer = RemoteScorer(actors)
    results = [submit(scorer) for _ in range(5)]
    assert sorted(waiting(actors)) == [1, 2, 2]
    actors["scorer-1"].answer(0.5)
    assert [r.result(timeout=1)[0].reward for r in results if r.done()] == [0.5]
    assert waiting(actors) == [2, 1, 1]
    submit(scorer)
    assert waiting(actors) == [2, 1, 2], "of the two with one in hand it is the other's turn"
    assert scorer.holdings()["in_hand"] == {"scorer-0": 2, "scorer-1": 1, "scorer-2": 2}


def test_where_nobody_has_anything_in_hand_they_take_turns(actors):
    scorer = RemoteScorer(actors)
    asked = []
    for _ in range(6):
        submit(scorer)
        (name,) = scorer.holdings()["in_hand"]
        asked.append(name)
        actors[name].answer(1.0)
    assert asked == ["scorer-0", "scorer-1", "scorer-2"] * 2


def test_a_new_set_takes_the_next_group_and_the_old_ones_answers_are_still_taken(actors):
    first, second, _ = actors.values()
    scorer = RemoteScorer({"scorer-0": first})
    before = submit(scorer)
    scorer.use(1, {"scorer-1": second})
    after = submit(scorer)
    assert scorer.holdings() == {"set": 1, "in_hand": {"scorer-0": 1, "scorer-1": 1}}
    first.answer(1.0)
    second.answer(0.0)
    assert (before.result(timeout=1)[0].reward, after.result(timeout=1)[0].reward) == (1.0, 0.0)
    assert scorer.holdings() == {"set": 1, "in_hand": {}}


def test_an_older_set_that_comes_late_is_ignored(actors):
    scorer = RemoteScorer({"scorer-0": actors["scorer-0"]}, number=4)
    scorer.use(6, {"scorer-1": actors["scorer-1"]})
    scorer.use(5, {"scorer-2": actors["scorer-2"]})
    submit(scorer)
    assert waiting(actors) == [0, 1, 0]
    assert scorer.holdings()["set"] == 6


def test_a_group_in_the_hands_of_a_scorer_that_dies_is_scored_by_another(actors):
    first, second, third = actors.values()
    scorer = RemoteScorer(actors)
    result = submit(scorer)
    first.fail(UNAVAILABLE)
    until(second)
    second.fail(DIED)
    until(third)
    assert first.retries == second.retries == [0], "there are others to ask"
    assert third.retries == [-1], "the last one is waited for until Ray has started it again"
    third.answer(0.25)
    assert result.result(timeout=1)[0].reward == 0.25
    assert scorer.holdings()["in_hand"] == {}


def test_a_scorer_that_was_lost_gets_nothing_until_the_driver_names_it_again(actors):
    pair = {name: actors[name] for name in ("scorer-0", "scorer-1")}
    scorer = RemoteScorer(pair, number=1)
    submit(scorer)
    actors["scorer-0"].fail(UNAVAILABLE)
    until(actors["scorer-1"])
    for _ in range(3):
        submit(scorer)
    assert waiting(pair) == [0, 4]
    scorer.use(2, pair)
    submit(scorer)
    assert waiting(pair) == [1, 4]


def test_where_all_are_gone_for_good_whoever_waits_is_told(actors):
    only = {"scorer-0": actors["scorer-0"]}
    scorer = RemoteScorer(only)
    result = submit(scorer)
    only["scorer-0"].fail(DIED)
    with pytest.raises(ray.exceptions.ActorDiedError):
        result.result(timeout=1)
    with pytest.raises(PenstockError, match="no scorer"):
        submit(RemoteScorer({}))


def test_what_a_scorer_raises_itself_is_not_asked_of_another(actors):
    scorer = RemoteScorer(actors)
    result = submit(scorer)
    actors["scorer-0"].fail(ValueError("the reference model is broken"))
    with pytest.raises(ValueError, match="reference model"):
        result.result(timeout=1)
    assert waiting(actors) == [0, 0, 0]
