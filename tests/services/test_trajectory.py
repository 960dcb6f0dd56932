"""Records refuse what does not fit together, by name."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from builders import completion, group, prompt, spans, trajectory

from penstock.services.trajectory import Group, RecordError, Sampling, Trajectory, Unfinished
from penstock.services.versions import FIRST, Version


def test_log_probs_of_another_length_are_refused_with_both_lengths():
    with pytest.raises(RecordError, match=r"Completion\.logprobs: expected 2 entries .* found 3"):
        completion(tokens=(4, 5), logprobs=(-1.0, -1.0, -1.0), spans=spans((FIRST, 2)))


def test_spans_must_cover_every_token():
    with pytest.raises(RecordError, match=r"sum to 2 tokens, found \[1\]"):
        completion(tokens=(4, 5), spans=spans((FIRST, 1)))


def test_an_empty_span_is_refused():
    with pytest.raises(RecordError, match=r"counts must be positive"):
        completion(tokens=(4, 5), spans=spans((FIRST, 2), (Version(0, 1), 0)))


def test_a_log_prob_that_is_no_number_is_refused_with_its_place():
    with pytest.raises(RecordError, match="entry 1 is not a number"):
        completion(tokens=(4, 5), logprobs=(-1.0, float("nan")))


def test_arrays_of_another_type_are_refused():
    with pytest.raises(RecordError, match=r"expected a one-dimensional int32 array, found int64\[2\]"):
        completion(tokens=(4, 5)).__class__(
            **{
                **msgspec.structs.asdict(completion(tokens=(4, 5))),
                "tokens": np.asarray([4, 5], np.int64),
            }
        )


def test_records_cannot_be_changed_nor_can_their_arrays():
    record = completion()
    with pytest.raises(AttributeError):
        record.finish = "length"
    with pytest.raises(ValueError, match="read-only"):
        record.tokens[0] = 9


def test_a_failed_reward_is_not_a_reward_of_zero():
    unscored = trajectory(reward=None)
    assert unscored.reward is None
    assert unscored.unscored
    with pytest.raises(RecordError, match="exactly one of reward and unscored"):
        Trajectory(completion=completion(), reward=None, parts={})
    with pytest.raises(RecordError, match="finite"):
        Trajectory(completion=completion(), reward=float("inf"), parts={})


def test_an_unknown_finish_is_refused_with_what_is_allowed():
    with pytest.raises(RecordError, match="expected one of stop, length, stale, found 'done'"):
        completion(finish="done")


def test_a_prompt_without_tokens_is_refused_with_its_row():
    with pytest.raises(RecordError, match=r"prompt 3 .* row 3.* has no tokens"):
        prompt(3, tokens=())


def test_a_group_knows_its_scored_members_and_all_its_spans():
    mixed = group(rewards=(1.0, None, 0.0), version=Version(0, 2))
    assert [t.reward for t in mixed.scored] == [1.0, 0.0]
    assert [s.version for s in mixed.spans] == [Version(0, 2)] * 3
    with pytest.raises(RecordError, match="has none"):
        Group(prompt=prompt(), sampling=Sampling(), trajectories=())


def test_an_unfinished_answer_may_be_empty():
    empty = Unfinished(tokens=np.zeros(0, np.int32), logprobs=np.zeros(0, np.float32), spans=())
    assert len(empty.tokens) == 0
