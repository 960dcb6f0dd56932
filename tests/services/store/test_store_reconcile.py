"""A learner comes back from a checkpoint: which groups it gets again, and which never."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from ledger_steps import RULES, indices, payload, play, reserve, states, step, taken

from penstock.services.contracts import StoreError
from penstock.services.replay import LedgerMemo, ReplayStore
from penstock.services.versions import FIRST, Version


def train(store: ReplayStore, version: Version, steps: int, groups: int = 2) -> Version:
    """So many whole steps, with groups played at the version that takes them."""
    for _ in range(steps):
        play(store, groups, version=version)
        version = step(store, version, groups)
    return version


def checkpoint(store: ReplayStore, version: Version) -> LedgerMemo:
    """Memo, then commit, as a learner does around its checkpoint; the memo goes through JSON as in the file."""
    memo = LedgerMemo.from_dict(json.loads(json.dumps(store.memo(version).as_dict())))
    store.commit(version)
    return memo


def test_a_resume_opens_a_new_lineage_that_forks_from_the_checkpoint(opened):
    store = opened()
    at = train(store, FIRST, 3)
    checkpoint(store, at)
    assert store.reconcile(at, 6, "resume") == Version(1, 3)
    assert store.published() == Version(1, 3)
    assert store.forks() == {1: Version(0, 3)}


def test_the_same_request_again_opens_no_second_lineage(opened):
    store = opened()
    at = train(store, FIRST, 1)
    assert store.reconcile(at, 2, "resume") == store.reconcile(at, 2, "resume") == Version(1, 1)
    train(store, Version(1, 1), 1)
    assert store.reconcile(at, 2, "resume") == Version(1, 1)
    assert store.published() == Version(1, 2)


def test_what_the_checkpoint_does_not_contain_is_stored_again_and_delivered_again(opened):
    store = opened(groups_per_step=2, max_lag=3)
    at = train(store, FIRST, 1)
    checkpoint(store, at)
    ahead = train(store, at, 1)
    play(store, 3, version=ahead)
    assert taken(store, ahead, 2) == [4, 5]
    again = store.reconcile(at, 2, "resume")
    assert states(store) == {"committed": 2, "stored": 5}
    assert taken(store, again, 2) == [2, 3]


def test_lost_steps_are_delivered_again_each_as_it_was_and_before_anything_else(opened):
    store = opened(groups_per_step=2, max_lag=3)
    first, second, third, *late = reserve(store, 5)

    def put(*tickets) -> None:
        for ticket in tickets:
            store.put(ticket, payload(ticket.index), FIRST)

    put(first, late[0])
    at = step(store, FIRST, 2)
    put(second, late[1])
    step(store, at, 2)
    put(third)
    at = store.reconcile(FIRST, 0, "resume")
    assert taken(store, at, 2) == [0, 3], "not the two oldest prompts"
    assert taken(store, at.next(), 2) == [1, 4]
    at = store.reconcile(FIRST, 0, "resume again")
    assert taken(store, at, 3) == [0, 1, 3], "a larger step takes all of the first one, and of the second the oldest"
    store.advance(at.next())
    assert taken(store, at.next(), 2) == [2, 4]
    play(store, 1)
    at = store.reconcile(FIRST, 0, "once more")
    assert [taken(store, Version(at.lineage, n), 2) for n in (0, 1)] == [[0, 1], [2, 3]]


def test_a_crash_between_the_checkpoint_and_its_commit_delivers_nothing_twice(opened):
    store = opened(groups_per_step=2)
    at = train(store, FIRST, 2)
    store.memo(at)  # the checkpoint is on disk; commit never came
    store.reconcile(at, 4, "resume")
    assert states(store) == {"committed": 4}


def test_workers_keep_their_leases_while_the_learner_is_replaced(opened):
    store = opened()
    (ticket,) = reserve(store, 1)
    again = store.reconcile(FIRST, 0, "resume")
    store.put(ticket, b"whole", FIRST)
    assert taken(store, again, 1) == [0]


def test_groups_of_a_lost_future_are_stale_by_the_way_through_the_fork(opened):
    store = opened(groups_per_step=2, max_lag=2)
    at = train(store, FIRST, 1)
    checkpoint(store, at)
    ahead = train(store, train(store, at, 1), 1)  # 0.3
    play(store, 2, version=ahead)
    again = store.reconcile(at, 2, "resume")  # 1.1
    # Sampled by 0.1 (lag 0), 0.2 (lag 1) and 0.3 (lag 2 at 1.1): all may be used now.
    assert store.take(again, 0).stale == 0
    store.advance(again.next())
    # At 1.2 those of 0.3 are (3 - 1) + (2 - 1) = 3 steps away.
    assert store.take(again.next(), 0).stale == 2
    assert states(store) == {"committed": 2, "dropped": 2, "stored": 4}


def test_a_worker_of_a_lost_future_waits_until_it_has_swapped(opened):
    store = opened(groups_per_step=2, max_lag=1)
    ahead = train(store, FIRST, 2)
    again = store.reconcile(FIRST, 0, "resume")
    answer = store.reserve("w", ahead, 1, 60.0, "r")
    assert (answer.tickets, answer.closed, answer.published) == ((), "lag", again)


def test_a_worker_of_a_lineage_nobody_knows_is_an_error(opened):
    with pytest.raises(StoreError, match=r"at version 7\.3, of a lineage that the store does not know"):
        reserve(opened(), 1, version=Version(7, 3))


def test_a_drained_run_admits_again_after_a_resume(opened):
    store = opened()
    store.drain("run ended")
    store.reconcile(FIRST, 0, "resume")
    assert len(reserve(store, 1)) == 1


def test_a_gate_that_was_held_is_open_after_a_resume(opened):
    store = opened()
    store.hold(True)
    store.reconcile(FIRST, 0, "resume")
    assert len(reserve(store, 1)) == 1


def test_a_checkpoint_of_another_run_is_refused(opened):
    store = opened()
    play(store, 2)
    taken(store, FIRST, 1)
    with pytest.raises(StoreError, match=r"version 3\.9.*another run"):
        store.reconcile(Version(3, 9), 40, "resume")
    assert states(store) == {"stored": 1, "taken": 1}


# --- the store is gone ------------------------------------------------------------------------------


def test_a_lost_store_counts_what_was_outstanding_as_lost_and_the_rest_as_the_checkpoint_knew_it(blank):
    memo = LedgerMemo(10, 6, {"no_signal": 1}, (7, 8, 9), {1: Version(0, 2)})
    blank.attach(RULES)
    assert blank.reconcile(Version(1, 3), 10, "resume", memo) == Version(2, 3)
    assert blank.counts().dropped == {"no_signal": 1, "store_lost": 3}
    assert states(blank) == {"committed": 6, "dropped": 4}
    assert blank.forks() == {1: Version(0, 2), 2: Version(1, 3)}
    assert indices(reserve(blank, 2, version=Version(2, 3))) == [10, 11]


def test_without_a_memo_all_of_a_lost_store_is_lost(blank):
    blank.attach(RULES)
    assert blank.reconcile(Version(0, 3), 10, "resume") == Version(1, 3)
    assert blank.counts().dropped == {"store_lost": 10}


def test_a_lost_store_can_be_resumed_twice_from_the_same_checkpoint(blank):
    blank.attach(RULES)
    assert blank.reconcile(Version(2, 5), 0, "first") == Version(3, 5)
    assert blank.reconcile(Version(2, 5), 0, "second") == Version(4, 5)
    assert len(reserve(blank, 1, version=Version(3, 5))) == 1


def test_a_memo_must_be_of_the_same_checkpoint_as_the_call(opened):
    with pytest.raises(ValueError, match="10 prompts, the call says 9"):
        opened().reconcile(FIRST, 9, "r", LedgerMemo(10, 0, {}, (), {}))


# --- roll back beyond the last commit ---------------------------------------------------------------


def test_rolling_back_beyond_the_last_commit_rewinds_the_cursor_and_plays_again_what_is_gone(opened):
    store = opened(groups_per_step=2, max_lag=3)
    play(store, 3)  # 0, 1, 2: the last one is outstanding at the checkpoint
    (slow,) = reserve(store, 1)  # 3: so is this
    first = step(store, FIRST, 2)
    old = checkpoint(store, first)
    assert (old.issued, old.committed, old.outstanding) == (4, 2, (2, 3))
    play(store, 3, version=first)  # 4, 5, 6
    second = step(store, first, 2)  # uses 2 and 4
    checkpoint(store, second)
    assert states(store) == {"committed": 4, "stored": 2, "reserved": 1}

    again = store.reconcile(first, 4, "roll back", old)
    # 2 was used only by the lost future: it is to be played again. 3 is still being played, 5 and 6 are stored.
    assert again == Version(1, 1)
    assert states(store) == {"committed": 2, "returned": 1, "reserved": 1, "stored": 2}
    assert store.counts().issued == 6  # 0 to 3, 5, 6: number 4 has not been issued on this lineage
    # The returned one first, then the stream from where the checkpoint stood, over those that are still here.
    assert indices(reserve(store, 4, version=again)) == [2, 4, 7, 8]
    store.put(slow, b"x", FIRST)
    assert states(store)["stored"] == 3


@pytest.fixture
def rewound(opened):
    """A store whose cursor stands at 4 again, while 5 and 6 of the lost future are still stored."""
    store = opened(groups_per_step=2, max_lag=3)
    play(store, 4)
    first = step(store, FIRST, 2)
    old = checkpoint(store, first)
    play(store, 3, version=first)  # 4, 5, 6
    again = step(store, first, 2)  # uses 2 and 3
    step(store, again, 1)  # uses 4
    checkpoint(store, again.next())
    assert store.reconcile(first, old.issued, "roll back", old) == Version(1, 1)
    assert states(store) == {"committed": 2, "returned": 2, "stored": 2}
    return store


def test_what_was_kept_from_a_lost_future_is_not_issued_again_when_it_has_ended_before_the_cursor_comes_by(rewound):
    at = step(rewound, Version(1, 1), 2)  # uses 5 and 6, which the cursor has not reached
    rewound.commit(at)
    assert states(rewound) == {"committed": 4, "returned": 2}
    assert indices(reserve(rewound, 4, version=at)) == [2, 3, 4, 7]
    assert states(rewound) == {"committed": 4, "reserved": 4}


def test_a_checkpoint_made_while_prompts_are_ahead_of_the_cursor_can_be_gone_back_to(rewound):
    at = Version(1, 1)
    memo = checkpoint(rewound, at)
    assert (memo.issued, memo.outstanding, memo.ahead) == (6, (2, 3, 5, 6), (5, 6))
    used = step(rewound, at, 2)  # uses 5 and 6
    checkpoint(rewound, used)
    back = rewound.reconcile(at, memo.issued, "roll back again", memo)
    assert states(rewound) == {"committed": 2, "returned": 4}
    assert indices(reserve(rewound, 6, version=back)) == [2, 3, 5, 6, 4, 7]


def test_a_lost_store_goes_on_behind_the_cursor_of_a_checkpoint_with_prompts_ahead_of_it(blank):
    memo = LedgerMemo(6, 2, {}, (2, 3, 5, 6), {1: Version(0, 1)}, ahead=(5, 6))
    blank.attach(RULES)
    again = blank.reconcile(Version(1, 1), 6, "resume", memo)
    assert blank.counts().dropped == {"store_lost": 4}
    assert indices(reserve(blank, 3, version=again)) == [4, 7, 8]
    assert states(blank) == {"committed": 2, "dropped": 4, "reserved": 3}


def test_drops_after_the_checkpoint_are_undone_by_a_roll_back(opened):
    store = opened(groups_per_step=2)
    first = train(store, FIRST, 1)
    old = checkpoint(store, first)
    play(store, 3, version=first)
    taken(store, first, 3)
    store.discard(first, [2], "no_signal")
    second = step(store, first, 2)
    checkpoint(store, second)
    store.reconcile(first, 2, "roll back", old)
    assert store.counts().dropped == {}
    assert states(store) == {"committed": 2}
    assert indices(reserve(store, 2, version=Version(1, 1))) == [2, 3]


def test_without_a_memo_a_roll_back_rewinds_nothing_but_stays_balanced(opened):
    store = opened(groups_per_step=2)
    first = train(store, FIRST, 1)
    store.commit(first)
    second = train(store, first, 1)
    store.commit(second)
    assert store.reconcile(first, 2, "roll back") == Version(1, 1)
    assert states(store) == {"committed": 4}
    assert indices(reserve(store, 1, version=Version(1, 1))) == [4]


def test_a_resume_at_the_last_commit_rewinds_nothing(opened):
    store = opened(groups_per_step=2)
    first = train(store, FIRST, 1)
    memo = checkpoint(store, first)
    play(store, 2, version=first)
    taken(store, first, 2)
    store.discard(first, [2], "no_signal")
    store.reconcile(first, memo.issued, "resume", memo)
    assert store.counts().dropped == {"no_signal": 1}
    assert indices(reserve(store, 1, version=Version(1, 1))) == [4]


# --- the store is older than the checkpoint ---------------------------------------------------------


def test_a_store_that_lost_its_last_writes_is_put_right_by_the_checkpoint(opened):
    # The host lost power: the store stands before step 2 and still holds what the checkpoint of step 2 contains.
    store = opened(groups_per_step=2, max_lag=3)
    first = train(store, FIRST, 1)
    play(store, 3, version=first)  # 2, 3, 4 stored
    memo = LedgerMemo(issued=7, committed=4, dropped={"stale": 1}, outstanding=(4, 6), forks={})
    again = store.reconcile(Version(0, 2), 7, "resume", memo)
    assert again == Version(1, 2)
    assert states(store) == {"committed": 4, "dropped": 1, "stored": 1, "returned": 1}
    assert store.counts().issued == 7
    assert taken(store, again, 2) == [4]
    assert indices(reserve(store, 2, version=again)) == [6, 7]


def test_a_checkpoint_of_another_branch_is_never_delivered_what_it_contains(opened):
    store = opened(groups_per_step=2, max_lag=3)
    first = train(store, FIRST, 1)
    early = checkpoint(store, first)
    second = train(store, first, 1)  # uses 2 and 3
    late = checkpoint(store, second)
    branch = store.reconcile(first, early.issued, "back to the early one", early)
    assert play(store, 2, version=branch) == [2, 3]
    again = store.reconcile(second, late.issued, "forth to the late one", late)
    assert again == Version(2, 2)
    assert states(store) == {"committed": 4}
    assert indices(reserve(store, 1, version=again)) == [4]


def test_many_resumes_in_a_row_keep_the_books(opened):
    store = opened(groups_per_step=2, max_lag=2)
    at = FIRST
    for round_ in range(8):
        saved = train(store, at, 1)
        memo = checkpoint(store, saved)
        train(store, saved, 1)
        (unfinished,) = reserve(store, 1, version=store.published())
        store.release(unfinished, b"half")
        at = store.reconcile(saved, memo.issued, f"resume {round_}", memo)
        assert at == Version(round_ + 1, saved.step)
        states(store)
    assert store.counts().by_state["committed"] == 16


def test_rules_may_be_amended_at_a_resume(opened):
    store = opened(prompts=4)
    play(store, 4)
    assert store.gate() == "data_end"
    store.amend(replace(RULES, prompts=8))
    assert store.gate() == ""
