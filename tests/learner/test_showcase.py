"""Answers of a step for people to read: which, and what is said of their tokens. By hand."""

from __future__ import annotations

from types import SimpleNamespace

import builders
import msgspec
import numpy as np
import pytest

from penstock.learner import deal
from penstock.learner.algorithms.bound import bind
from penstock.learner.assemble import Moment, assemble
from penstock.learner.config import AlgorithmSection
from penstock.learner.exhibit import split, to_bytes
from penstock.learner.showcase import NO_REFERENCE, NOT_TRAINED_ON, Showcase, readable, record_of
from penstock.services.samples import ACTION, COUNTS, LEFT_OUT, SpanRecord, TokenRecord
from penstock.services.trajectory import Group, Sampling, Trajectory
from penstock.services.versions import Version

NOW = Moment(Version(1, 12), {1: Version(0, 10)}, 4, mask_beyond=False)


def showcase(**changes):
    return Showcase(**({"answers": 2, "every": 1, "tokens": 64, "seed": 0} | changes))


def trajectory(reward=1.0, **changes):
    parts = {"exact": reward}
    why = None if reward is not None else "reward 'exact': timed out after 5.0 s"
    return Trajectory(completion=builders.completion(**changes), reward=reward, parts=parts, unscored=why)


def test_a_step_that_is_not_due_shows_nothing():
    groups = [builders.group(0)]
    assert showcase(every=5).pick(groups, Version(0, 4)) == []
    assert len(showcase(every=5).pick(groups, Version(0, 5))) == 2


def test_the_picks_follow_from_seed_and_step_alone():
    groups = [builders.group(index, (0.0, 0.5, 1.0)) for index in range(8)]
    one, again, next_step = (showcase().pick(groups, Version(n, step)) for n, step in ((0, 7), (3, 7), (0, 8)))
    assert [(g.prompt.index, m) for g, m in one] == [(g.prompt.index, m) for g, m in again]
    assert [(g.prompt.index, m) for g, m in one] != [(g.prompt.index, m) for g, m in next_step]


def test_the_rows_of_the_picks_are_found_in_the_batch():
    groups = [builders.group(5, (0.0, None, 1.0)), builders.group(9, (1.0, 0.0))]
    batch = assemble(groups, bind(AlgorithmSection()), NOW)
    picked = [(groups[0], 1), (groups[0], 2), (groups[1], 0)]
    # The unscored answer has no row.
    assert showcase().rows(picked, batch) == [1, 2]
    assert showcase(tokens=0).rows(picked, batch) == []


def test_versions_are_told_with_their_lag_through_the_fork():
    spans = builders.spans((Version(0, 9), 1), (Version(1, 12), 2))
    record = record_of(trajectory(tokens=(4, 5, 6), spans=spans), NOW, None, 8, None)
    # From 1.12 down to the fork at 10 are 2 steps, and one more down to 0.9.
    assert record.spans == [
        SpanRecord(version="0.9", count=1, lag=3),
        SpanRecord(version="1.12", count=2, lag=0),
    ]
    assert (record.length, record.begins_at) == (3, "1.12")


def test_what_the_step_made_of_the_tokens_stands_beside_what_sampled_them():
    of_step = {
        "logp_learner": np.float32([-1, -2, -3]),
        "advantages": np.float32([0.5, 0.5, 0.5]),
        "trust_weights": np.float32([1, 1, 2]),
        "token_rewards": np.float32([0, 0, 1]),
        "marks": np.uint8([COUNTS, 0, COUNTS | LEFT_OUT]),
    }
    answer = trajectory(tokens=(4, 5, 6), logprobs=(-0.5, 0.0, -1.5), actions=np.asarray([True, False, True]))
    record = record_of(answer, NOW, of_step, 8, lambda ids: [f"t{i}" for i in ids])
    (stretch,) = record.stretches
    assert stretch.texts == ["t4", "t5", "t6"]
    assert stretch.marks == [ACTION | COUNTS, 0, ACTION | COUNTS | LEFT_OUT]
    # A tool's token has no log-probs that mean anything.
    assert stretch.logp_sampler == [-0.5, None, -1.5]
    assert stretch.logp_learner == [-1.0, None, -3.0]
    assert stretch.advantages == [0.5, 0.5, 0.5]
    assert stretch.token_rewards == [0.0, 0.0, 1.0]
    assert record.missing == {"logp_reference": NO_REFERENCE}


def test_an_answer_that_was_not_trained_on_says_so():
    record = record_of(trajectory(reward=None), NOW, None, 8, None)
    assert set(record.missing) == {"logp_reference", "logp_learner", "advantages", "trust_weights", "token_rewards"}
    assert record.missing["advantages"] == NOT_TRAINED_ON
    assert record.stretches[0].marks == [ACTION, ACTION]


def test_samples_gather_what_all_ranks_say_of_the_shown_rows():
    groups = [
        Group(
            prompt=builders.prompt(3),
            sampling=Sampling(),
            trajectories=tuple(trajectory(float(i), tokens=range(4, 5 + i)) for i in range(4)),
        )
    ]
    batch = assemble(groups, bind(AlgorithmSection()), NOW)
    picked = [(groups[0], 3), (groups[0], 0)]
    rows = showcase().rows(picked, batch)
    shares = deal.deal(batch, [[0, 1, 2, 3]], 2, 64, 1, 0, rows)
    assert sorted(int(share.batch.members[row]) for share in shares for row in share.shown) == [0, 3]

    def of_rank(share):
        """Every token's log-prob is its id, taken off."""
        tokens = [share.batch.split(share.batch.tokens)[row] for row in share.shown]
        return to_bytes({"logp_learner": -np.concatenate(tokens).astype(np.float32)} if tokens else {})

    trained = SimpleNamespace(shown=[of_rank(share) for share in shares])
    told = [msgspec.convert(s["by_token"], TokenRecord) for s in showcase().samples(picked, NOW, shares, trained)]
    assert [t.stretches[0].logp_learner for t in told] == [[-4.0, -5.0, -6.0, -7.0], [-4.0]]
    # The whole reward falls to the last action.
    assert told[0].stretches[0].token_rewards == [0.0, 0.0, 0.0, 3.0]


def test_rows_come_back_from_their_bytes_as_they_were():
    columns = {"a": np.arange(5, dtype=np.float32), "marks": np.arange(5, dtype=np.uint8)}
    first, second = split(to_bytes(columns), [2, 3])
    assert first["a"].tolist() == [0, 1]
    assert second["marks"].tolist() == [2, 3, 4]
    assert split(to_bytes({}), []) == []


def test_a_sample_is_its_text_alone_where_no_tokens_are_asked_for():
    group = builders.group(0)
    (sample,) = showcase(tokens=0).samples([(group, 1)], NOW, [], SimpleNamespace(shown=[]))
    assert sample == readable(group, 1)
    assert sample["answer"] == "45"
    assert sample["logprob_mean"] == pytest.approx(-0.5)
