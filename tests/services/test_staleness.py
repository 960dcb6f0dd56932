"""Lag, admission and freshness, against pictures of version trees and a walk through them."""

from __future__ import annotations

import pytest
from builders import spans
from hypothesis import given
from hypothesis import strategies as st

from penstock.services import staleness
from penstock.services.versions import FIRST, Version

ONE_FORK = {1: Version(0, 40)}
# 0 ─ … ─ 20 ─ … ─ 40 ─ 42, lineage 1 leaves at 40, lineage 2 (a fall back behind that) at 20.
TWO_FORKS = {1: Version(0, 40), 2: Version(0, 20)}


def test_on_one_lineage_the_lag_is_the_difference_of_the_steps():
    assert staleness.lag(Version(0, 7), Version(0, 5), {}) == 2


def test_a_fork_begins_with_the_weights_it_forked_from():
    assert staleness.lag(Version(1, 40), Version(0, 40), ONE_FORK) == 0


def test_a_token_from_before_the_fork_is_as_old_as_on_one_lineage():
    assert staleness.lag(Version(1, 43), Version(0, 38), ONE_FORK) == 5


def test_a_token_of_a_lost_future_counts_the_steps_back_to_the_fork_and_forward_again():
    assert staleness.lag(Version(1, 43), Version(0, 42), ONE_FORK) == 3 + 2


def test_two_lost_futures_meet_at_the_earlier_fork():
    # From (2, 23) back to 20 on lineage 0 are 3 steps; from 20 to 40 and on to (1, 41) are 21.
    assert staleness.lag(Version(2, 23), Version(1, 41), TWO_FORKS) == 3 + 21


def test_lineages_without_a_common_ancestor_are_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"lineage 5 and version 0\.3"):
        staleness.lag(Version(0, 3), Version(5, 9), {5: Version(4, 1)})


@st.composite
def trees(draw: st.DrawFn) -> tuple[dict[Version, Version | None], dict[int, Version]]:
    """A version tree as a parent pointer per version, and its forks."""
    parents: dict[Version, Version | None] = {FIRST: None}
    forks: dict[int, Version] = {}
    for lineage in range(draw(st.integers(1, 4))):
        if lineage:
            # A fork is from a checkpoint of any earlier lineage; version (l, start) is the fork itself.
            origin = draw(st.sampled_from(sorted(parents)))
            forks[lineage] = origin
            at = Version(lineage, origin.step)
            parents[at] = origin
        else:
            at = FIRST
        for _ in range(draw(st.integers(0, 5))):
            parents[at.next()] = at
            at = at.next()
    return parents, forks


def edges_between(a: Version, b: Version, parents: dict[Version, Version | None]) -> int:
    """Train steps on the way from a to b, by walking both to the root; entering a fork costs nothing."""

    def way(v: Version) -> list[Version]:
        found = [v]
        while (up := parents[found[-1]]) is not None:
            found.append(up)
        return found

    def steps(path: list[Version]) -> int:
        return path[0].step - path[-1].step

    ours, theirs = way(a), way(b)
    meet = next(v for v in ours if v in set(theirs))
    return steps(ours[: ours.index(meet) + 1]) + steps(theirs[: theirs.index(meet) + 1])


@given(trees(), st.data())
def test_lag_is_the_distance_in_the_version_tree(tree, data):
    parents, forks = tree
    now = data.draw(st.sampled_from(sorted(parents)))
    sampled = data.draw(st.sampled_from(sorted(parents)))
    assert staleness.lag(now, sampled, forks) == edges_between(now, sampled, parents)


def test_a_trajectory_that_saw_a_swap_has_several_lags():
    found = staleness.token_lags(spans((Version(0, 3), 2), (Version(0, 5), 1)), Version(0, 6), {})
    assert found.tolist() == [3, 3, 1]


def test_the_stalest_token_binds_unless_stale_tokens_are_masked():
    pieces = spans((Version(0, 3), 2), (Version(0, 5), 1))
    now = Version(0, 6)
    assert staleness.binding_version(pieces, now, {}, "drop") == Version(0, 3)
    assert staleness.binding_version(pieces, now, {}, "cut") == Version(0, 3)
    assert staleness.binding_version(pieces, now, {}, "mask") == Version(0, 5)


def test_with_max_lag_zero_a_current_worker_may_fill_one_step_and_a_stale_one_nothing():
    assert staleness.capacity(behind=0, max_lag=0, groups_per_step=8) == 8
    assert staleness.capacity(behind=1, max_lag=0, groups_per_step=8) == 0
    assert staleness.admits(7, 0, 0, 8)
    assert not staleness.admits(8, 0, 0, 8)


@given(st.integers(0, 8), st.integers(1, 16), st.integers(0, 200), st.integers(0, 10))
def test_what_is_admitted_is_consumed_within_the_bound_by_a_queue(max_lag, per_step, outstanding, behind):
    """Play the queue: everything outstanding is consumed first, `per_step` groups per version."""
    published = 10
    consumed_at = published + outstanding // per_step
    within = consumed_at - (published - behind) <= max_lag
    assert staleness.admits(outstanding, behind, max_lag, per_step) == within
