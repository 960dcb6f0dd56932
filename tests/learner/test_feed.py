"""What the learner takes from the store, what it drops and why, and when it stops asking."""

from __future__ import annotations

import re

import builders
import msgspec
import numpy as np
import pytest

from penstock.learner.algorithms.bound import bind
from penstock.learner.config import AlgorithmSection
from penstock.learner.feed import Feed
from penstock.services.codec import encode
from penstock.services.contracts import DeadlinePassed
from penstock.services.replay import LedgerRules
from penstock.services.store.memory import MemoryStore
from penstock.services.versions import FIRST, Version


def no_stop():
    return ""


class Source:
    """A store with a worker's hands: `give` reserves and puts one group."""

    def __init__(self, prompts=None, max_lag=1, want=2):
        self.store = MemoryStore()
        self.store.attach(LedgerRules(max_lag, want, prompts, 10**8))
        self.store.reconcile(FIRST, 0, "start")
        self.count = 0

    def give(self, *rewards, payload=None, version=FIRST):
        self.count += 1
        answer = self.store.reserve("worker", version, 1, 60.0, f"r{self.count}")
        (ticket,) = answer.tickets
        group = builders.group(ticket.index, rewards, version=version)
        self.store.put(ticket, payload or encode(group), version)
        return ticket.index

    def refuse(self, reason, cause="", times=1):
        for _ in range(times):
            self.count += 1
            (ticket,) = self.store.reserve("worker", FIRST, 1, 60.0, f"r{self.count}").tickets
            self.store.refuse(ticket, reason, cause)

    def feed(self, want=2, deadline=5.0, refills=2, warn=lambda _: None, **cells):
        algorithm = bind(AlgorithmSection.model_validate(cells))
        feed = Feed(self.store, algorithm, want, refills, deadline, pause=0.001, warn=warn)
        feed.refusals.begin()
        return feed


@pytest.fixture
def always_looking(monkeypatch):
    """The ledger's counts are read at every turn of a wait, so that nothing depends on the clock."""
    monkeypatch.setattr("penstock.learner.refusals.LOOK", 0.0)


def test_a_step_is_filled_with_groups_that_have_signal():
    source = Source(max_lag=4)
    useful = [source.give(0.0, 1.0)]
    source.give(1.0, 1.0)
    source.give(None, 1.0)
    source.give(0.0, 1.0, payload=b"PNSK\x00\x01\x05Group no group")
    useful.append(source.give(0.0, 0.5, None))
    fed = source.feed().next(FIRST, no_stop)
    assert fed.indices == useful
    assert [g.prompt.index for g in fed.groups] == useful
    assert +fed.dropped == {"no_signal": 1, "unscored": 1, "damaged": 1}
    assert [g.scored[0].reward for g in fed.passed_over] == [1.0]
    assert re.match("group 3: Group: ", fed.damage[0])
    counts = source.store.counts()
    assert counts.balanced
    assert dict(counts.dropped) == {"no_signal": 1, "unscored": 1, "damaged": 1}
    assert counts.by_state["taken"] == 2


def test_a_step_has_its_groups_in_the_order_of_their_prompts_whenever_each_came():
    source = Source()
    early, late = source.store.reserve("worker", FIRST, 2, 60.0, "both").tickets

    def put(ticket) -> str:
        source.store.put(ticket, encode(builders.group(ticket.index, (0.0, 1.0))), FIRST)
        return ""

    put(late)
    fed = source.feed().next(FIRST, lambda: put(early))
    assert fed.indices == [group.prompt.index for group in fed.groups] == [early.index, late.index]


def test_with_the_filter_off_groups_without_signal_stay_in_the_batch():
    source = Source()
    source.give(1.0, 1.0)
    source.give(0.0, 1.0)
    fed = source.feed(group_filter="all").next(FIRST, no_stop)
    assert len(fed.groups) == 2
    assert not +fed.dropped


def test_refilling_goes_on_while_groups_come_one_by_one():
    source = Source(want=2)
    waits = iter([(1.0, 1.0), (0.0, 1.0), (0.0, 0.0), (0.0, 2.0)])

    def waiting():
        rewards = next(waits, None)
        if rewards:
            source.give(*rewards)
        return ""

    fed = source.feed(refills=5).next(FIRST, waiting)
    assert len(fed.groups) == 2
    assert fed.dropped["no_signal"] == 2


def test_refilling_ends_with_the_reason_when_everything_is_solved():
    source = Source(max_lag=50)
    for _ in range(4):
        source.give(1.0, 1.0)
    source.give(0.0, 1.0)
    fed = source.feed(refills=2).next(FIRST, lambda: source.give(1.0, 1.0) and "")
    assert fed.ended.startswith("no_signal: the step from version 0.0 found 0 of 2 groups with signal and dropped 4")
    assert "4 of the 4 without signal had all answers at the reward 1" in fed.ended
    assert fed.groups == []
    assert source.store.counts().by_state["taken"] == 0
    assert source.store.counts().balanced


def test_the_end_of_the_data_ends_the_run_and_drops_what_cannot_fill_a_step():
    source = Source(prompts=3)
    feed = source.feed()
    source.give(0.0, 1.0)
    source.give(0.0, 1.0)
    assert not feed.next(FIRST, no_stop).ended
    source.store.advance(Version(0, 1))
    source.give(0.0, 1.0, version=Version(0, 1))
    fed = feed.next(Version(0, 1), no_stop)
    assert fed.ended == "data_end"
    assert dict(source.store.counts().dropped) == {"data_end": 1}


def test_a_request_to_stop_ends_the_wait_and_leaves_what_is_held():
    source = Source()
    source.give(0.0, 1.0)
    fed = source.feed().next(FIRST, lambda: "stop: someone pressed Ctrl-C")
    assert fed.ended == "stop: someone pressed Ctrl-C"
    assert source.store.counts().by_state["taken"] == 1


def test_a_wait_that_takes_too_long_says_for_what_since_when_and_who():
    source = Source()
    source.give(0.0, 1.0)
    source.give(1.0, 1.0)
    with pytest.raises(DeadlinePassed) as raised:
        source.feed(deadline=0.05).next(FIRST, no_stop)
    text = str(raised.value)
    assert re.search(r"version 0\.0 waited 0 s \(staleness\.take_deadline\), since \d\d:\d\d:\d\d", text)
    assert "for 2 groups from the rollout workers and holds 1; dropped meanwhile: 1 no_signal" in text
    assert "1 taken" in text


def test_stale_groups_are_counted_and_replaced():
    source = Source(max_lag=0, want=1)
    feed = source.feed(want=1)
    source.give(0.0, 1.0)
    feed.next(FIRST, no_stop)
    now = Version(0, 1)
    source.store.advance(now)
    (ticket,) = source.store.reserve("worker", now, 1, 60.0, "late").tickets
    source.store.put(ticket, encode(builders.group(ticket.index, (0.0, 1.0))), FIRST)
    fed = feed.next(now, lambda: source.give(0.0, 1.0, version=now) and "")
    assert fed.dropped["stale"] == 1
    assert len(fed.groups) == 1


def test_taking_again_after_a_lost_reply_gives_the_same_groups():
    source = Source()
    source.give(0.0, 1.0)
    source.give(0.0, 1.0)
    first, again = (source.feed().next(FIRST, no_stop) for _ in range(2))
    assert first.indices == again.indices
    assert np.array_equal(first.groups[0].prompt.tokens, again.groups[0].prompt.tokens)


@pytest.mark.usefixtures("always_looking")
def test_workers_that_drop_all_they_have_are_told_early_and_end_the_wait_with_the_cause():
    source, told = Source(), []
    source.refuse("unscored", "of an earlier start", times=50)
    feed = source.feed(want=2, refills=3, warn=told.append)
    fed = feed.next(FIRST, lambda: source.refuse("unscored", "KeyError:\n 'answer'") or "")
    assert [text.split(" and handed")[0] for text in told] == [
        f"the rollout workers have dropped {n} groups in a row ({n} unscored)" for n in (2, 4)
    ]
    assert told[0].endswith(
        "and handed on none; the last cause of unscored: KeyError: 'answer'; "
        "the run ends at 6 (staleness.refill_attempts × learner.groups_per_step)"
    )
    assert fed.ended.startswith("starved: the rollout workers have dropped 6 groups in a row (6 unscored)")
    assert "KeyError: 'answer'; the limit is 6" in fed.ended
    assert "Mend the cause and go on with penstock resume" in fed.ended
    assert feed.refusals.of_step() == {"unscored": 6}
    assert feed.refusals.of_step() == {}


@pytest.mark.usefixtures("always_looking")
def test_a_group_that_comes_ends_the_row_of_dropped_ones_and_what_it_brings_is_held():
    source, told = Source(), []
    turns = iter([3, "group", 3, 3, "group"])

    def waiting():
        match next(turns):
            case "group":
                source.give(0.0, 1.0)
            case times:
                source.refuse("prompt_too_long", "64 tokens", times)
        return ""

    feed = source.feed(want=2, refills=5, warn=told.append)
    fed = feed.next(FIRST, waiting)
    assert len(fed.groups) == 2
    assert [re.search(r"dropped (\d) groups", text)[1] for text in told] == ["3", "3", "6"]
    assert feed.refusals.of_step() == {"prompt_too_long": 9}


@pytest.mark.usefixtures("always_looking")
def test_groups_that_grew_old_at_the_workers_are_no_reason_to_end():
    source, told = Source(max_lag=50), []
    feed = source.feed(want=2, refills=1, warn=told.append)
    turns = iter(range(5))

    def waiting():
        source.refuse("stale", "too old")
        return "" if next(turns) < 4 else "enough"

    assert feed.next(FIRST, waiting).ended == "enough"
    assert not told
    assert feed.refusals.of_step() == {"stale": 5}


def test_data_that_ends_in_dropped_groups_says_so():
    source = Source(prompts=3)
    feed = source.feed(want=2, refills=2)
    source.refuse("unscored", "it broke", times=3)
    fed = feed.next(FIRST, no_stop)
    assert fed.ended.startswith("data_end: the rollout workers have dropped 3 groups in a row (3 unscored)")
    assert fed.ended.endswith("the last cause of unscored: it broke")


def of_two_versions(index, older: Version, younger: Version):
    """A group of which each answer began at one version and ended at another."""
    group = builders.group(index, (0.0, 1.0), version=older)

    def spanned(trajectory):
        first = trajectory.completion.spans[0]
        half = first.count // 2
        spans = (
            msgspec.structs.replace(first, count=half),
            msgspec.structs.replace(first, step=younger.step, lineage=younger.lineage, count=first.count - half),
        )
        return msgspec.structs.replace(
            trajectory, completion=msgspec.structs.replace(trajectory.completion, spans=spans)
        )

    return msgspec.structs.replace(group, trajectories=tuple(map(spanned, group.trajectories)))


@pytest.mark.parametrize(("bound", "kept"), [(1, []), (2, [0]), (None, [0])])
def test_after_a_fall_back_a_group_is_judged_by_all_its_versions(bound, kept):
    """Where it was played version 0.0 was its stalest; from 1.0, which forked at 0.0, version 0.2 is two steps away."""
    source = Source(max_lag=2)
    (ticket,) = source.store.reserve("worker", FIRST, 1, 60.0, "r").tickets
    group = of_two_versions(ticket.index, FIRST, Version(0, 2))
    assert all(len(t.completion.spans) == 2 for t in group.trajectories)
    source.store.put(ticket, encode(group), FIRST)
    now = source.store.reconcile(FIRST, 1, "again")
    assert now == Version(1, 0)
    feed = source.feed(want=1, deadline=0.3)
    feed._max_lag = lambda: bound
    fed = feed.next(now, no_stop) if kept else None
    if kept:
        assert fed.indices == kept
        return
    with pytest.raises(DeadlinePassed, match="dropped meanwhile: 1 stale"):
        feed.next(now, no_stop)
    counts = source.store.counts()
    assert counts.dropped == {"stale": 1} and counts.balanced


def test_what_is_held_is_judged_again_once_the_bound_was_tightened_and_replaced():
    source, bound = Source(max_lag=3), [3]
    for step in (1, 2):
        source.store.advance(Version(0, step))
    now = Version(0, 2)
    feed = source.feed()
    feed._max_lag = lambda: bound[0]
    old, young = source.give(0.0, 1.0, version=FIRST), source.give(0.0, 1.0, version=Version(0, 1))
    fed = feed.next(now, no_stop)
    assert fed.indices == [old, young]
    assert not feed.drop_outlived(fed), "both are within the bound by which they were taken"
    bound[0] = 1
    source.store.amend(LedgerRules(1, 2, None, 10**8))
    assert feed.drop_outlived(fed)
    assert (fed.indices, [group.prompt.index for group in fed.groups]) == ([young], [young])
    new = source.give(0.0, 1.0, version=now)
    fed = feed.next(now, no_stop, fed)
    assert (fed.indices, [group.prompt.index for group in fed.groups]) == ([young, new], [young, new])
    assert +fed.dropped == {"stale": 1}
    counts = source.store.counts()
    assert counts.balanced and dict(counts.dropped) == {"stale": 1}
    assert not feed.drop_outlived(fed)
