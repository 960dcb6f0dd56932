"""One worker against the ledger in memory: every group ends in a state, whatever happens in between."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pytest
from builders import prompt

from penstock.rollout.errors import EngineFailed
from penstock.rollout.evaluation import EvaluationJob
from penstock.rollout.evaluator import Evaluator
from penstock.rollout.fake import FakeGenerator, table
from penstock.rollout.worker import RolloutWorker, Rules
from penstock.services.codec import decode
from penstock.services.contracts import DeadlinePassed, PenstockError, StoreError
from penstock.services.replay import LedgerRules
from penstock.services.staleness import Outlived, binding_version
from penstock.services.store.memory import MemoryStore
from penstock.services.trajectory import Completion, Group, Prompt, Sampling, Trajectory
from penstock.services.versions import FIRST, Version
from penstock.services.weights.files import WeightsMissing

SAMPLING = Sampling(max_tokens=20)


class Prompts:
    """A stream of short prompts; those in `long` leave no room for an answer."""

    def __init__(self, long: Sequence[int] = ()) -> None:
        self.long = set(long)

    def __getitem__(self, index: int) -> Prompt:
        return prompt(index, [2 + index % 20] * (64 if index in self.long else 3))


class Paced(FakeGenerator):
    """Goes as many steps as the test lets it go."""

    def __init__(self, **more: Any) -> None:
        super().__init__(end=-1, **more)
        self.steps = threading.Semaphore(0)

    def step(self) -> list[tuple[str, Completion]]:
        return super().step() if self.steps.acquire(timeout=0.01) else []

    def go(self, steps: int) -> None:
        self.steps.release(steps)

    @property
    def lengths(self) -> list[int]:
        """Tokens of every answer in flight."""
        return [sum(span.count for span in self.spans(key)) for key in self.in_flight]


class Judge:
    """Scores in threads of its own, after `seconds`; answers whose group is in `fails` stay unscored."""

    def __init__(self, seconds: float = 0.0, fails: Sequence[int] = ()) -> None:
        self.seconds, self.fails = seconds, set(fails)

    def submit(self, prompt: Prompt, completions: Sequence[Completion]) -> Future[tuple[Trajectory, ...]]:
        result: Future[tuple[Trajectory, ...]] = Future()
        judged = tuple(self.judge(prompt, c) for c in completions)
        threading.Timer(self.seconds, lambda: result.set_result(judged)).start()
        return result

    def judge(self, prompt: Prompt, completion: Completion) -> Trajectory:
        if prompt.index in self.fails:
            return Trajectory(completion=completion, reward=None, parts={"even": None}, unscored="it broke")
        reward = float(len(completion.tokens) % 2 == 0)
        return Trajectory(completion=completion, reward=reward, parts={"even": reward})

    def close(self) -> None: ...


Kind = TypeVar("Kind", bound=MemoryStore)


def ledger(max_lag: int = 2, groups_per_step: int = 4, prompts: int | None = None) -> MemoryStore:
    return opened(MemoryStore(), max_lag, groups_per_step, prompts)


def opened(store: Kind, max_lag: int = 2, groups_per_step: int = 4, prompts: int | None = None) -> Kind:
    store.attach(LedgerRules(max_lag=max_lag, groups_per_step=groups_per_step, prompts=prompts, max_bytes=10**9))
    store.reconcile(FIRST, 0, "start")
    return store


def worker(store: Any, generator: Any = None, scorer: Any = None, stream: Any = None, **rules: Any) -> RolloutWorker:
    fields: dict[str, Any] = {"group_size": 3, "max_lag": 2, "max_groups": 6, "lease": 5.0, "patience": 1.0}
    return RolloutWorker(
        rules.pop("name", "w0"),
        store,
        generator or FakeGenerator(),
        scorer or Judge(),
        stream or Prompts(),
        rules.pop("sampling", SAMPLING),
        Rules(**(fields | rules)),
    )


@contextmanager
def running(one: RolloutWorker) -> Iterator[Future[None]]:
    """The worker in a thread of its own; the future holds what `run` raised."""
    outcome: Future[None] = Future()

    def body() -> None:
        try:
            one.run()
            outcome.set_result(None)
        except BaseException as error:  # noqa: BLE001  (the test looks at it)
            outcome.set_exception(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        yield outcome
    finally:
        one.request_drain()
        thread.join(10)
        assert not thread.is_alive()


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.002)


def train(store: MemoryStore, version: Version, want: int = 4) -> list[Group]:
    """What a learner does with one step, weights aside."""
    held: list[Any] = []
    until(lambda: bool(held.append(store.take(version, want)) or len(held[-1].groups) == want))
    store.advance(version.next())
    return [decode(stored.payload, Group) for stored in held[-1].groups]


def test_groups_are_generated_scored_and_put_until_the_gate_closes():
    store = ledger()
    one = worker(store)
    with running(one):
        until(lambda: store.counts().by_state["stored"] == 12 and one.stats()["closed"] == "lag")
    groups = train(store, FIRST)
    assert [group.prompt.index for group in groups] == [0, 1, 2, 3]
    for group in groups:
        assert len(group.trajectories) == 3 and len(group.scored) == 3
        for answer in (t.completion for t in group.trajectories):
            before = [int(group.prompt.tokens[-1]), *answer.tokens[:-1].tolist()]
            expected = table(FIRST, 32)[before, answer.tokens]
            assert np.abs(answer.logprobs - expected).max() < 1e-6
    assert store.counts().balanced


def test_a_worker_that_asks_for_prompts_anyway_does_not_look_for_weights_besides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("penstock.rollout.worker.RETRY", (0.01, 0.01))
    monkeypatch.setattr("penstock.rollout.worker.LOOK", 0.1)
    looks: list[float] = []

    class Store(MemoryStore):
        def published(self) -> Version:
            looks.append(time.monotonic())
            return super().published()

    store = opened(Store(), max_lag=0, groups_per_step=1)
    one = worker(store, max_lag=0)
    with running(one):
        until(lambda: str(one.stats()["closed"]) == "lag")
        looks.clear()
        time.sleep(0.3)
        assert len(looks) <= 1, "the answers at the closed gate say which version is published"
        train(store, FIRST, 1)
        until(lambda: one.stats()["version"] == "0.1")


def questions_at_a_closed_gate(takes: float) -> int:
    """Within .6 s, of a store that takes so long to answer."""
    times: list[float] = []

    class Store(MemoryStore):
        def reserve(self, *arguments: Any) -> Any:
            time.sleep(takes)
            times.append(time.monotonic())
            return super().reserve(*arguments)

    store = opened(Store(), max_lag=0, groups_per_step=1)
    one = worker(store, max_lag=0)
    with running(one):
        until(lambda: str(one.stats()["closed"]) == "lag")
        times.clear()
        time.sleep(0.6)
        return len(times)


def test_a_store_that_is_slow_to_answer_is_asked_more_seldom():
    assert questions_at_a_closed_gate(0.0) >= 8
    assert questions_at_a_closed_gate(0.02) <= 3


def test_who_listens_at_the_gate_goes_on_with_the_version_that_opens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.rollout.worker.RETRY", (60.0, 60.0))
    monkeypatch.setattr("penstock.rollout.worker.LOOK", 60.0)
    store = ledger(max_lag=0)
    one = worker(store, max_lag=0)
    version = FIRST
    with running(one):
        for _ in range(3):
            until(lambda: store.counts().by_state["stored"] == 4 and str(one.stats()["closed"]) == "lag")
            train(store, version)
            version = version.next()
        until(lambda: store.counts().by_state["stored"] == 4)


def test_a_worker_follows_the_learner_and_no_group_is_beyond_the_bound():
    store = ledger(max_lag=1)
    one = worker(store, max_lag=1)
    version = FIRST
    with running(one):
        for _ in range(8):
            for group in train(store, version):
                oldest = binding_version(group.spans, version, {}, "drop")
                assert version.step - oldest.step <= 1
            version = version.next()
    counts = store.counts()
    assert counts.balanced and counts.by_state["applied"] == 32


def test_at_lag_zero_the_worker_and_the_learner_take_turns():
    store = ledger(max_lag=0)
    version = FIRST
    with running(worker(store, max_lag=0)):
        for _ in range(4):
            groups = train(store, version)
            assert {span.version for group in groups for span in group.spans} == {version}
            version = version.next()


def test_a_worker_follows_a_learner_that_falls_back_to_a_checkpoint():
    store = ledger()
    with running(worker(store)):
        train(store, FIRST)
        store.commit(Version(0, 1))
        train(store, Version(0, 1))  # a future that will be lost
        again = store.reconcile(Version(0, 1), store.counts().issued, "resume")
        assert again == Version(1, 1)
        for step in (1, 2, 3):
            train(store, Version(1, step))
    counts = store.counts()
    assert counts.balanced and not counts.dropped
    assert counts.by_state["committed"] == 4 and counts.by_state["applied"] == 12


def test_a_prompt_that_is_too_long_is_dropped_with_its_reason():
    store = ledger(prompts=6)
    with running(worker(store, stream=Prompts(long=[2, 3]))):
        until(lambda: store.counts().by_state["stored"] == 4)
    assert store.counts().dropped == {"prompt_too_long": 2}


def test_a_group_without_scores_is_dropped_and_one_with_a_quorum_is_put():
    store = ledger(prompts=4)
    with running(worker(store, scorer=Judge(fails=[1]))):
        until(lambda: store.counts().by_state["stored"] == 3)
        until(lambda: store.counts().dropped == {"unscored": 1})
    assert store.counts().refused == {"unscored": 1}
    assert store.counts().causes == {"unscored": "group 1 (test row 1) has 0 scores of 1 that are needed: it broke"}


def test_when_prompts_end_the_worker_waits_and_says_why():
    store = ledger(prompts=2)
    one = worker(store)
    with running(one):
        until(lambda: one.stats()["phase"] == "waiting: data_end")
        until(lambda: store.counts().by_state["stored"] == 2)


def test_a_drained_worker_hands_on_its_tokens_and_another_completes_them():
    store = ledger()
    slow = Paced(slots=4)
    first = worker(store, slow, max_groups=2)
    with running(first):
        until(lambda: len(slow.in_flight) == 6)
        slow.go(7)
        until(lambda: slow.lengths == [7, 7, 7, 7, 0, 0])
    counts = store.counts()
    assert counts.by_state["returned"] == counts.issued == 2
    second = worker(store, FakeGenerator(seed=9, end=-1), name="w1")
    with running(second):
        groups = train(store, FIRST)
    assert second.stats()["rollout/resumed"] == 2
    for group in groups:
        for answer in (t.completion for t in group.trajectories):
            assert len(answer.tokens) == 20 and answer.finish == "length"
            before = [int(group.prompt.tokens[-1]), *answer.tokens[:-1].tolist()]
            assert np.abs(answer.logprobs - table(FIRST, 32)[before, answer.tokens]).max() < 1e-6


def account(*workers: RolloutWorker) -> dict[str, int]:
    said = [one.stats() for one in workers]
    parts = ("sampled", "resumed", "put", "handed_back", "dropped")
    return {part: int(sum(s.get(f"rollout/tokens_{part}", 0) for s in said)) for part in parts}


def test_of_an_answer_that_is_handed_on_three_times_no_token_is_sampled_twice_and_none_is_lost():
    """The engines' own counts against what the workers say became of it, and against the groups in the store."""
    store = ledger()
    everybody = []
    for number in range(3):
        engine = Paced(slots=6, seed=number)
        everybody.append(worker(store, engine, name=f"w{number}", max_groups=2))
        with running(everybody[-1]):
            until(lambda engine=engine: len(engine.in_flight) == 6)
            engine.go(5)
            until(lambda engine=engine, many=5 * (number + 1): engine.lengths == [many] * 6)
    assert account(*everybody) == {
        "sampled": 90,
        "resumed": 30 + 60,
        "put": 0,
        "handed_back": 30 + 60 + 90,
        "dropped": 0,
    }
    last = worker(store, FakeGenerator(seed=9, end=-1), name="last")
    with running(last):
        groups = train(store, FIRST)
    whole = account(*everybody, last)
    assert whole["sampled"] + whole["resumed"] == whole["put"] + whole["handed_back"] + whole["dropped"]
    assert whole["resumed"] == 180
    first_two = [len(t.completion.tokens) for group in groups[:2] for t in group.trajectories]
    assert first_two == [20] * 6
    left = [decode(stored.payload, Group) for stored in store.take(Version(0, 1), 99).groups]
    assert whole["put"] == sum(len(t.completion.tokens) for group in (*groups, *left) for t in group.trajectories)


def test_what_is_given_up_counts_as_dropped():
    store = ledger(prompts=2)
    one = worker(store, FakeGenerator(end=-1), Judge(fails=[1]), max_groups=2)
    with running(one):
        until(lambda: store.counts().dropped == {"unscored": 1} and store.counts().by_state["stored"] == 1)
    assert account(one) == {"sampled": 120, "resumed": 0, "put": 60, "handed_back": 0, "dropped": 60}


@pytest.mark.parametrize(("outlived", "resumed"), [("drop", 0), ("cut", 0), ("mask", 2)])
def test_what_was_handed_back_and_is_beyond_the_bound_is_played_anew(outlived: Outlived, resumed: int):
    store = ledger(groups_per_step=2, prompts=2)
    slow = Paced()
    with running(worker(store, slow, outlived=outlived)):
        until(lambda: len(slow.in_flight) == 6)
        slow.go(5)
        until(lambda: slow.lengths == [5] * 6)
    for step in range(3):
        store.advance(Version(0, step + 1))
    second = worker(store, FakeGenerator(end=-1), name="w1", outlived=outlived)
    with running(second):
        groups = train(store, Version(0, 3), want=2)
    assert second.stats()["rollout/resumed"] == resumed
    assert [group.prompt.index for group in groups] == [0, 1]
    steps = {span.step for group in groups for t in group.trajectories for span in t.completion.spans}
    assert steps == ({0, 3} if resumed else {3})
    assert store.counts().dropped == {}


def test_when_the_engine_fails_what_it_had_is_handed_back_and_the_error_comes_out():
    class Breaks(FakeGenerator):
        def step(self) -> list[tuple[str, Completion]]:
            if any(len(self.spans(key)) and self.spans(key)[0].count == 5 for key in self.in_flight):
                raise EngineFailed("it fell over")
            return super().step()

    store = ledger()
    with running(worker(store, Breaks(end=-1))) as outcome, pytest.raises(EngineFailed, match="it fell over"):
        outcome.result(timeout=10)
    assert store.counts().by_state["reserved"] == 0
    ticket = store.reserve("w1", FIRST, 1, 5.0, "again").tickets[0]
    assert ticket.partial is not None


def test_weights_are_fetched_while_answers_go_on_and_pinned_until_they_are_in_use():
    class Slow(Paced):
        there = threading.Event()

        def prepared(self, version: Version) -> bool:
            return self.there.is_set()

    store = ledger(groups_per_step=1)
    slow = Slow()
    with running(worker(store, slow, max_groups=1)):
        until(lambda: len(slow.in_flight) == 3)
        slow.go(1)
        store.advance(Version(0, 1))
        until(lambda: Version(0, 1) in store.pinned())
        slow.go(4)
        until(lambda: slow.lengths == [5, 5, 5])  # with the old weights
        store.advance(Version(0, 2))
        until(lambda: store.pinned() == {Version(0, 2)})  # nobody waits for the one before any more
        assert slow.version == FIRST
        slow.there.set()
        until(lambda: slow.version == Version(0, 2))
        until(lambda: store.pinned() == frozenset())


def test_leases_are_renewed_while_the_engine_is_busy():
    class Compiles(FakeGenerator):
        first = True

        def step(self) -> list[tuple[str, Completion]]:
            if self.first:
                time.sleep(1.2)
            self.first = False
            return super().step()

    store = ledger()
    one = worker(store, Compiles(), lease=0.3)
    with running(one):
        until(lambda: store.counts().issued > 0)
        time.sleep(0.8)
        assert store.expire() == 0
        until(lambda: store.counts().by_state["stored"] >= 4)
    assert store.counts().redelivered == 0


def test_a_group_that_was_given_to_someone_else_is_forgotten():
    class Stolen(MemoryStore):
        def renew(self, worker: str, tickets: Any, lease: float) -> tuple[int, ...]:
            super().renew(worker, tickets, lease)
            return (0,) if any(ticket.index == 0 for ticket in tickets) else ()

    store = opened(Stolen(), prompts=3)
    one = worker(store, scorer=Judge(seconds=1.0), lease=0.3)
    with running(one):
        until(lambda: one.stats().get("rollout/fenced") == 1)
        until(lambda: store.counts().by_state["stored"] == 2)


def test_a_store_that_is_away_for_a_moment_is_asked_again_and_one_that_stays_away_ends_the_worker():
    class Away(MemoryStore):
        until = 0.0

        def reserve(self, *args: Any) -> Any:
            if time.monotonic() < self.until:
                raise StoreError("connection refused")
            return super().reserve(*args)

    store = opened(Away(), prompts=3)
    store.until = time.monotonic() + 0.5
    with running(worker(store, patience=5.0)):
        until(lambda: store.counts().by_state["stored"] == 3)
    store.until = time.monotonic() + 99
    silent = pytest.raises(DeadlinePassed, match=r"w0: reserve: the store has not answered .* connection refused")
    with running(worker(store, patience=0.3)) as outcome, silent:
        outcome.result(timeout=10)


def test_a_scorer_that_never_answers_is_a_named_error():
    store = ledger()
    stuck = pytest.raises(
        DeadlinePassed,
        match=r"the scores of group \d+ \(\w+ row \d+\) have been missing .*\(rollout\.scoring_deadline\)",
    )
    with running(worker(store, scorer=Judge(seconds=2), scoring_deadline=0.3)) as outcome, stuck:
        outcome.result(timeout=10)
    assert store.counts().by_state["returned"] > 0


def test_a_version_that_was_replaced_before_it_was_fetched_is_skipped():
    store = ledger()
    asked: list[Version] = []

    def fetch(version: Version) -> None:
        asked.append(version)
        if version == Version(0, 1):
            store.advance(Version(0, 2))  # the learner was faster
            raise WeightsMissing("gone")

    with running(worker(store, FakeGenerator(fetch=fetch))):
        train(store, FIRST)
        until(lambda: asked == [FIRST, Version(0, 1), Version(0, 2)])
    assert store.pinned() == frozenset()


def test_a_version_that_never_comes_is_a_named_error():
    def fetch(version: Version) -> None:
        raise WeightsMissing(f"version {version} is not there")

    in_vain = pytest.raises(DeadlinePassed, match=r"for the learner's first weights: version 0\.0 is not there")
    with running(worker(ledger(), FakeGenerator(fetch=fetch), weights_deadline=0.2)) as outcome, in_vain:
        outcome.result(timeout=10)


@pytest.mark.parametrize(("outlived", "finish"), [("cut", "stale"), ("mask", "length")])
def test_an_answer_that_outlives_the_bound_is_cut_or_goes_on(outlived: Any, finish: str):
    store = ledger(max_lag=1, groups_per_step=1)
    held = Paced()
    one = worker(store, held, max_lag=1, outlived=outlived, max_groups=1, group_size=2)
    with running(one):
        until(lambda: len(held.in_flight) == 2)
        held.go(5)
        until(lambda: held.lengths == [5, 5])
        store.advance(Version(0, 1))
        until(lambda: held.version == Version(0, 1))
        held.go(60)
        (group,) = train(store, Version(0, 1), want=1)
    answer = group.trajectories[0].completion
    assert answer.finish == finish
    expected = [(Version(0, 0), 5)] + ([] if outlived == "cut" else [(Version(0, 1), 15)])
    assert [(span.version, span.count) for span in answer.spans] == expected


def test_with_drop_a_group_beyond_the_bound_is_ended_at_the_swap():
    store = ledger(max_lag=0, groups_per_step=1)
    held = Paced()
    with running(worker(store, held, max_lag=0, max_groups=1)):
        until(lambda: len(held.in_flight) == 3)
        held.go(1)
        until(lambda: held.lengths == [1, 1, 1])
        store.advance(Version(0, 1))
        until(lambda: store.counts().dropped == {"stale": 1})
        until(lambda: held.lengths == [0, 0, 0])  # the next group has begun


def test_an_evaluation_is_pinned_to_one_version_and_takes_no_ledger_entry():
    store = ledger(prompts=0)
    paced = Paced()
    one = worker(store, paced, evaluation_slots=4)
    job = EvaluationJob(tuple(prompt(i, [3 + i]) for i in range(5)), SAMPLING, samples=2)
    with running(one):
        until(lambda: one.stats()["phase"] == "waiting: data_end")
        report = one.evaluate(job)
        until(lambda: len(paced.in_flight) == 4)  # of fifteen
        paced.go(1)
        until(lambda: paced.lengths == [1, 1, 1, 1])
        store.advance(Version(0, 1))
        paced.go(200)
        assert report.result(timeout=10).version == FIRST
        until(lambda: paced.version == Version(0, 1))
    assert {s.tokens for s in report.result().samples} == {20} and len(report.result().samples) == 15
    metrics = report.result().metrics
    assert metrics["eval/sampled/accuracy"] == metrics["eval/greedy/accuracy"] == 1.0  # 20 is even
    assert metrics["eval/sampled/length"] == 20 and metrics["eval/greedy/unscored"] == 0
    assert store.counts().issued == 0


def test_an_evaluation_of_a_version_that_is_gone_fails_alone():
    store = ledger()

    def fetch(version: Version) -> None:
        if version == Version(0, 7):
            raise WeightsMissing("version 0.7 was retired")

    missing = EvaluationJob((prompt(0),), SAMPLING, version=Version(0, 7))
    given_up = EvaluationJob((prompt(0),), SAMPLING, deadline=-1.0)
    one = worker(store, FakeGenerator(fetch=fetch))
    with running(one):
        with pytest.raises(WeightsMissing, match="retired"):
            one.evaluate(missing).result(timeout=10)
        with pytest.raises(DeadlinePassed, match=r"evaluation of version 0\.0 was given up"):
            one.evaluate(given_up).result(timeout=10)
        train(store, FIRST)
    with pytest.raises(PenstockError, match="w0 has ended"):
        one.evaluate(missing).result(timeout=10)


def test_many_workers_that_come_and_go_leave_a_balanced_ledger():
    store = ledger(max_lag=2, groups_per_step=4)
    version = FIRST
    for round_ in range(4):
        with running(worker(store, FakeGenerator(seed=round_), name=f"a{round_}")):
            with running(worker(store, FakeGenerator(seed=99 + round_), name=f"b{round_}")):
                train(store, version)
                version = version.next()
            train(store, version)
            version = version.next()
    counts = store.counts()
    assert counts.balanced and counts.by_state["reserved"] == 0 and counts.by_state["applied"] == 32


def test_an_evaluation_asked_for_while_the_worker_ends_fails_and_is_not_forgotten():
    evaluator = Evaluator(FakeGenerator(), Judge(), slots=4)
    closing = threading.Thread(target=evaluator.close, args=("it has ended",))

    class InBetween(deque[Any]):
        def append(self, job: Any) -> None:
            closing.start()
            closing.join(0.2)  # `close` gets as far as it can before the job is there
            super().append(job)

    evaluator._jobs = InBetween()
    asked = evaluator.ask(EvaluationJob((prompt(0),), SAMPLING))
    closing.join()
    with pytest.raises(PenstockError, match="it has ended"):
        asked.result(timeout=0)
    with pytest.raises(PenstockError, match="it has ended"):
        evaluator.ask(EvaluationJob((prompt(0),), SAMPLING)).result(timeout=0)


def test_what_is_in_flight_is_told_in_answers_and_in_tokens():
    generator = Paced()
    one = worker(ledger(), generator, max_groups=1)
    with running(one):
        until(lambda: len(generator.in_flight) == 3)
        generator.go(7)
        until(lambda: generator.lengths == [7, 7, 7])
        until(lambda: one.stats()["rollout/tokens_in_flight"] == 21.0)
        assert one.stats()["rollout/in_flight"] == 3.0


def test_a_workers_phases_are_spans_that_are_handed_out_once():
    store = ledger()
    one = worker(store)
    with running(one):
        until(lambda: one.stats()["phase"] == "waiting: lag")
        time.sleep(0.1)
    spans = one.spans()
    assert "waiting: lag" in {span.phase for span in spans}
    assert sum(span.end - span.begin for span in spans) >= 0.1
    assert one.spans() == []
