"""The ledger's contract, one rule per test, held by the store in memory and by the one on Redis."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
from ledger_steps import RULES, indices, payload, play, reserve, states, step, taken

from penstock.services.contracts import Fenced, StoreError
from penstock.services.replay import Finished
from penstock.services.store.memory import MemoryStore
from penstock.services.versions import FIRST, Version

ONE, TWO, THREE = FIRST.next(), FIRST.next().next(), FIRST.next().next().next()


# --- opening ----------------------------------------------------------------------------------------


def test_a_new_run_starts_empty_at_the_first_version(opened):
    store = opened()
    assert store.published() == FIRST
    assert store.forks() == {}
    assert states(store) == {}


def test_nothing_can_be_reserved_or_looked_up_before_a_learner_has_opened_the_run(blank):
    for ask in (lambda: reserve(blank, 1), blank.published):
        with pytest.raises(StoreError, match="does not know this run"):
            ask()


def test_reconcile_asks_for_the_rules_first(blank):
    with pytest.raises(StoreError, match="attach"):
        blank.reconcile(FIRST, 0, "start")


def test_attaching_again_with_the_same_rules_changes_nothing_and_with_others_is_an_error(opened):
    store = opened()
    store.attach(RULES)
    with pytest.raises(StoreError, match="amend"):
        store.attach(replace(RULES, max_lag=3))


def test_amended_rules_hold_from_the_next_call(opened):
    store = opened(max_lag=0)
    assert len(reserve(store, 99)) == 4
    store.amend(replace(RULES, max_lag=2))
    assert len(reserve(store, 99)) == 8


# --- reserve ----------------------------------------------------------------------------------------


def test_prompts_are_issued_in_the_order_of_the_stream(opened):
    store = opened()
    assert indices(reserve(store, 3)) == [0, 1, 2]
    assert indices(reserve(store, 2, worker="other")) == [3, 4]
    assert states(store) == {"reserved": 5}


def test_the_gate_admits_max_lag_plus_one_steps_of_groups(opened):
    store = opened(max_lag=1, groups_per_step=4)
    answer = store.reserve("w", FIRST, 99, 60.0, "r")
    assert len(answer.tickets) == (1 + 1) * 4
    assert answer.closed == "lag"
    assert store.gate() == "lag"


def test_a_reservation_that_got_all_it_asked_for_says_no_reason(opened):
    assert opened().reserve("w", FIRST, 3, 60.0, "r").closed == ""


def test_a_worker_that_lags_may_join_only_a_shorter_queue(opened):
    store = opened(max_lag=1, groups_per_step=4)
    play(store, 4)
    step(store, FIRST, 4)
    # Published is 0.1, so a worker at 0.0 may start while fewer than (1 + 1 - 1) × 4 are outstanding.
    assert len(reserve(store, 99, version=FIRST)) == 4
    assert len(reserve(store, 99, version=ONE)) == 4


def test_a_worker_beyond_max_lag_gets_nothing_not_even_what_was_returned(opened):
    store = opened(max_lag=1, groups_per_step=1)
    (ticket,) = reserve(store, 1)
    play(store, 1)
    store.release(ticket, b"half")
    step(store, step(store, FIRST, 1), 0)
    late = store.reserve("late", FIRST, 9, 60.0, "r")
    assert (late.tickets, late.closed, late.published) == ((), "lag", TWO)
    assert indices(reserve(store, 1, worker="swapped", version=ONE)) == [ticket.index]


def test_the_same_request_again_gives_the_same_answer(opened):
    store = opened()
    first = store.reserve("w", FIRST, 3, 60.0, "r")
    assert store.reserve("w", FIRST, 3, 60.0, "r") == first
    assert states(store) == {"reserved": 3}
    assert indices(store.reserve("w", FIRST, 1, 60.0, "another").tickets) == [3]


def test_the_same_answer_again_carries_the_partial_while_its_ticket_is_good(opened):
    store = opened()
    (ticket,) = reserve(store, 1)
    store.release(ticket, b"half")
    (again,) = store.reserve("w", FIRST, 1, 0.0, "r").tickets
    assert store.expire() == 1
    # The lease has ended and nobody else has the group: who heard the answer only now may still go on from the partial.
    (heard,) = store.reserve("w", FIRST, 1, 0.0, "r").tickets
    assert (heard.fence, heard.partial) == (again.fence, b"half")
    store.put(heard, b"whole", FIRST)
    assert store.reserve("w", FIRST, 1, 0.0, "r").tickets[0].partial is None


def test_the_same_answer_again_is_whole_when_its_groups_have_ended_or_are_somebody_elses(opened):
    store = opened()
    first, *_ = store.reserve("w", FIRST, 3, 0.0, "r").tickets
    reserve(store, 2, worker="other")
    store.drain("run_ended")
    again = store.reserve("w", FIRST, 3, 0.0, "r").tickets
    assert (indices(again), again[0]) == ([0, 1, 2], first)


def test_an_answer_is_kept_for_five_minutes():
    now = [0.0]
    store = MemoryStore(clock=lambda: now[0])
    store.attach(RULES)
    store.reconcile(FIRST, 0, "start")
    assert indices(store.reserve("w", FIRST, 1, 1.0, "r").tickets) == [0]
    now[0] = 299.0
    assert store.reserve("w", FIRST, 1, 1.0, "r").tickets[0].fence == 1
    now[0] = 300.0
    assert store.reserve("w", FIRST, 1, 1.0, "r").tickets[0].fence == 2


def test_two_workers_may_use_the_same_request_id(opened):
    store = opened()
    assert indices(store.reserve("a", FIRST, 1, 60.0, "r").tickets) == [0]
    assert indices(store.reserve("b", FIRST, 1, 60.0, "r").tickets) == [1]


def test_the_stream_ends_at_the_last_prompt(opened):
    store = opened(prompts=3)
    answer = store.reserve("w", FIRST, 9, 60.0, "r")
    assert (indices(answer.tickets), answer.closed) == ([0, 1, 2], "data_end")


def test_the_gate_closes_while_payloads_are_larger_than_the_bound(opened):
    store = opened(max_bytes=100)
    play(store, 2, size=60)
    answer = store.reserve("w", FIRST, 1, 60.0, "r")
    assert (answer.tickets, answer.closed, store.gate()) == ((), "memory", "memory")
    taken(store, FIRST, 1)
    store.discard(FIRST, [0], "no_signal")
    assert len(reserve(store, 1)) == 1
    assert store.counts().payload_bytes == 60


def test_applied_payloads_hold_space_until_they_are_committed(opened):
    store = opened(max_bytes=100, groups_per_step=2)
    play(store, 2, size=60)
    step(store, FIRST, 2)
    assert (store.gate(), store.counts().payload_bytes) == ("memory", 120)
    store.commit(ONE)
    assert (store.gate(), store.counts().payload_bytes) == ("", 0)


# --- leases -----------------------------------------------------------------------------------------


def test_a_lease_that_ended_is_given_to_someone_else(opened):
    store = opened()
    (first,) = reserve(store, 1, lease=0.0)
    (second,) = reserve(store, 1, worker="other")
    assert second.index == first.index
    assert second.fence > first.fence
    assert store.counts().redelivered == 1


def test_the_first_worker_comes_back_and_its_fencing_token_is_refused(opened):
    store = opened()
    (first,) = reserve(store, 1, lease=0.0)
    (second,) = reserve(store, 1, worker="other")
    for late in (
        lambda: store.put(first, b"late", FIRST),
        lambda: store.release(first, b"late"),
        lambda: store.refuse(first, "late"),
    ):
        with pytest.raises(Fenced, match=f"group {first.index} "):
            late()
    assert store.renew("w", [first], 60.0) == (first.index,)
    store.put(second, b"right", FIRST)
    assert store.take(FIRST, 1).groups[0].payload == b"right"


def test_a_lease_ends_by_the_stores_clock(opened):
    store = opened()
    began = time.time()
    (ticket,) = reserve(store, 1, lease=0.3)
    assert store.expire() == 0
    assert began + 0.29 < ticket.expires < time.time() + 0.31
    time.sleep(0.31)
    assert store.expire() == 1
    assert store.expire() == 0
    assert states(store) == {"returned": 1}


def test_a_lease_that_is_renewed_goes_on(opened):
    store = opened()
    (ticket,) = reserve(store, 1, lease=0.0)
    assert store.renew("w", [ticket], 60.0) == ()
    assert store.expire() == 0


def test_a_group_whose_lease_ended_can_still_be_put_while_nobody_else_has_it(opened):
    store = opened()
    first, second = reserve(store, 2, lease=0.0)
    assert store.expire() == 2
    store.put(first, b"late but whole", FIRST)
    assert store.renew("w", [second], 60.0) == ()
    assert states(store) == {"reserved": 1, "stored": 1}


def test_what_a_worker_held_whose_process_is_gone_goes_back_at_once_and_nothing_else(opened):
    store = opened(groups_per_step=9)
    reserve(store, 2, worker="gone.0", lease=60.0)
    reserve(store, 1, worker="gone.1", lease=60.0)
    (stored,) = reserve(store, 1, worker="gone.0", lease=60.0)
    store.put(stored, b"whole", FIRST)
    assert store.lapse("gone.0") == 2
    assert store.lapse("gone.0") == store.lapse("nobody") == 0
    assert states(store) == {"returned": 2, "reserved": 1, "stored": 1}
    assert indices(reserve(store, 2, worker="other")) == [0, 1]
    assert store.lapse("gone.0") == 0, "they are another's now"
    assert store.lapse() == 3, "of a start before nobody is left"


def test_a_holder_that_lives_after_all_goes_on_until_another_is_given_its_group(opened):
    store = opened()
    first, second = reserve(store, 2)
    assert store.lapse("w") == 2
    assert store.renew("w", [first, second], 60.0) == ()
    assert states(store) == {"reserved": 2}
    store.lapse("w")
    (again,) = reserve(store, 1, worker="other")
    assert store.renew("w", [first, second], 60.0) == (again.index,)


def test_returned_groups_are_leased_again_before_new_prompts_and_whatever_the_gate_says(opened):
    store = opened(max_lag=0, groups_per_step=2)
    first, _ = reserve(store, 2)
    store.release(first, b"half an answer")
    assert store.gate() == "lag"
    (again,) = reserve(store, 5, worker="other")
    assert (again.index, again.partial) == (first.index, b"half an answer")


def test_a_released_ticket_is_void_though_nobody_else_has_the_group_yet(opened):
    store = opened()
    (ticket,) = reserve(store, 1)
    store.release(ticket, b"half")
    store.release(ticket, b"half")  # a repetition
    with pytest.raises(Fenced):
        store.put(ticket, b"whole", FIRST)
    assert store.renew("w", [ticket], 60.0) == (ticket.index,)
    assert states(store) == {"returned": 1}


def test_releasing_without_a_partial_forgets_the_one_it_came_with(opened):
    store = opened()
    (ticket,) = reserve(store, 1)
    store.release(ticket, b"half")
    (ticket,) = reserve(store, 1)
    store.release(ticket, None)
    assert reserve(store, 1)[0].partial is None
    assert store.counts().payload_bytes == 0


def test_a_partial_survives_a_lease_that_ends(opened):
    store = opened()
    (ticket,) = reserve(store, 1)
    store.release(ticket, b"half")
    reserve(store, 1, lease=0.0)
    assert reserve(store, 1)[0].partial == b"half"


# --- put and refuse ---------------------------------------------------------------------------------


def test_a_repeated_put_is_stored_once(opened):
    store = opened()
    (ticket,) = reserve(store, 1)
    store.put(ticket, b"whole", FIRST)
    store.put(ticket, b"whole", FIRST)
    assert states(store) == {"stored": 1}
    taken(store, FIRST, 1)
    store.put(ticket, b"whole", FIRST)
    assert states(store) == {"taken": 1}


def test_several_groups_are_put_at_once_and_a_lost_lease_among_them_is_said(opened):
    store = opened(groups_per_step=600, max_lag=0)
    tickets = reserve(store, 300)
    lost = reserve(store, 1, lease=0.0)
    again = reserve(store, 1)
    assert indices(lost) == indices(again) == [300]
    groups = [Finished(ticket, payload(ticket.index), FIRST) for ticket in (*tickets, *lost, *tickets[:2])]
    assert store.put_all(groups) == (300,)  # more than one call takes, and two of them said again
    assert states(store) == {"stored": 300, "reserved": 1}
    assert store.counts().payload_bytes == 3000
    assert [group.payload for group in store.take(FIRST, 600).groups] == [payload(index) for index in range(300)]
    assert store.put_all([]) == ()


def test_a_group_that_was_put_cannot_be_released_or_refused(opened):
    store = opened()
    (ticket,) = reserve(store, 1)
    store.put(ticket, b"whole", FIRST)
    with pytest.raises(Fenced):
        store.release(ticket, None)
    with pytest.raises(Fenced):
        store.refuse(ticket, "quorum")


def test_a_refused_group_is_dropped_by_its_reason_and_frees_the_gate(opened):
    store = opened(max_lag=0, groups_per_step=1)
    (ticket,) = reserve(store, 1)
    assert reserve(store, 1) == ()
    store.refuse(ticket, "quorum")
    store.refuse(ticket, "quorum")  # a repetition
    assert store.counts().dropped == {"quorum": 1}
    assert indices(reserve(store, 1)) == [1]


def test_what_workers_refused_is_counted_apart_with_the_last_cause(opened):
    store = opened(max_lag=3)
    first, second, third, fourth = reserve(store, 4)
    store.refuse(first, "unscored", "the judge was away")
    store.refuse(second, "unscored", "the judge had a cold: «größer»")
    store.refuse(second, "unscored", "said again, and not heard")
    store.refuse(third, "prompt_too_long")
    store.put(fourth, b"group", FIRST)
    store.take(FIRST, 1)
    store.discard(FIRST, [fourth.index], "unscored")
    counts = store.counts()
    assert counts.dropped == {"unscored": 3, "prompt_too_long": 1}
    assert counts.refused == {"unscored": 2, "prompt_too_long": 1}
    assert counts.causes == {"unscored": "the judge had a cold: «größer»", "prompt_too_long": ""}


def test_an_empty_payload_is_a_mistake_of_the_caller(opened):
    store = opened()
    (ticket,) = reserve(store, 1)
    with pytest.raises(ValueError, match="empty payload"):
        store.put(ticket, b"", FIRST)


def told(store, worker):
    return store.await_opening(worker, 0.05)


def wait_at_the_gate(store, worker):
    """Ask, get nothing, and say that one listens."""
    assert store.reserve(worker, FIRST, 9, 60.0, f"{worker} {time.monotonic()}", waits=True).tickets == ()


def test_who_waits_at_the_gate_hears_of_room_and_no_more_of_them_than_there_is_room_for(opened):
    store = opened(max_lag=0)
    assert len(play(store, 9)) == 4
    store.take(FIRST, 4)
    waiting = ["w", "x", "y"]
    for worker in waiting:
        wait_at_the_gate(store, worker)
    assert reserve(store, 9, worker="does not listen") == ()
    assert not any(told(store, worker) for worker in waiting)
    store.discard(FIRST, [0, 1], "no_signal")
    heard = [worker for worker in waiting if told(store, worker)]
    assert len(heard) == 2
    assert not any(told(store, worker) for worker in waiting), "each is told once"
    assert len(reserve(store, 9, worker=heard[0])) == 2
    wait_at_the_gate(store, heard[1])
    store.hold(True)
    store.hold(False)
    assert told(store, heard[1]), "also that nobody holds the gate shut any more"
    assert not told(store, heard[0]), "who got something does not wait"


def test_what_was_told_is_told_once_and_is_over_when_the_worker_has_asked_again(opened):
    store = opened(max_lag=0)
    tickets = reserve(store, 4)
    for ticket in tickets[:2]:
        wait_at_the_gate(store, "other")
        store.refuse(ticket, "unscored")
        assert len(reserve(store, 9, worker="other")) == 1
    assert not told(store, "other")
    wait_at_the_gate(store, "gone")
    store.lapse("gone")
    store.refuse(tickets[2], "unscored")
    assert not told(store, "gone"), "whose process has ended"


@pytest.mark.parametrize("opens", ["release", "refuse", "lapse", "advance", "amend"])
def test_everything_that_makes_room_is_told_at_once(opened, opens):
    store = opened(max_lag=0)
    tickets = reserve(store, 4)
    wait_at_the_gate(store, "other")
    if opens == "advance":
        for ticket in tickets:
            store.put(ticket, payload(ticket.index), FIRST)
    does = {
        "release": lambda: store.release(tickets[0], None),
        "refuse": lambda: store.refuse(tickets[0], "unscored"),
        "lapse": lambda: store.lapse("w"),
        "advance": lambda: step(store, FIRST, 4),
        "amend": lambda: store.amend(replace(RULES, max_lag=1)),
    }
    later = threading.Timer(0.2, does[opens])
    later.start()
    began = time.monotonic()
    assert store.await_opening("other", 0.9)
    assert time.monotonic() - began < 0.8
    later.join()


# --- take, discard, advance, commit -----------------------------------------------------------------


def waited(store, seconds):
    began = time.monotonic()
    store.await_arrival(seconds)
    return time.monotonic() - began


def test_who_waits_for_groups_hears_of_one_at_once_also_of_one_put_before_and_else_waits_it_out(opened):
    store = opened()
    assert waited(store, 0.2) >= 0.19
    play(store, 2)
    assert waited(store, 0.9) < 0.6, "put before"
    assert waited(store, 0.2) >= 0.19, "two were told of as one"
    later = threading.Timer(0.2, play, (store, 1))
    later.start()
    assert waited(store, 0.9) < 0.8, "put while it waited"
    later.join()


def test_take_gives_the_oldest_first_with_their_payloads(opened):
    store = opened()
    tickets = reserve(store, 4)
    for ticket in reversed(tickets):
        store.put(ticket, payload(ticket.index), FIRST)
    groups = store.take(FIRST, 3).groups
    assert [group.index for group in groups] == [0, 1, 2]
    assert [group.payload for group in groups] == [payload(0), payload(1), payload(2)]
    assert states(store) == {"stored": 1, "taken": 3}


def test_old_and_young_are_told_apart_by_number_and_not_by_spelling(opened):
    store = opened(groups_per_step=12)
    play(store, 12)
    assert taken(store, FIRST, 12) == list(range(12))


def test_the_same_take_again_gives_the_same_groups(opened):
    store = opened()
    play(store, 6)
    assert store.take(FIRST, 4) == store.take(FIRST, 4)
    assert states(store) == {"stored": 2, "taken": 4}


def test_take_fills_up_what_is_missing(opened):
    store = opened()
    play(store, 2)
    assert taken(store, FIRST, 4) == [0, 1]
    play(store, 3)
    assert taken(store, FIRST, 4) == [0, 1, 2, 3]
    store.discard(FIRST, [1], "no_signal")
    assert taken(store, FIRST, 4) == [0, 2, 3, 4]


def test_discarded_groups_are_dropped_by_reason_once_and_free_the_gate_at_once(opened):
    store = opened(max_lag=0, groups_per_step=4)
    play(store, 4)
    taken(store, FIRST, 4)
    assert store.gate() == "lag"
    store.discard(FIRST, [0, 2], "no_signal")
    store.discard(FIRST, [0, 2], "no_signal")
    assert store.counts().dropped == {"no_signal": 2}
    assert indices(reserve(store, 9)) == [4, 5]


def test_only_groups_of_that_step_can_be_discarded_and_then_none_is(opened):
    store = opened()
    play(store, 2)
    taken(store, FIRST, 1)
    with pytest.raises(StoreError, match=r"group 1 is stored, not taken for the step from 0\.0"):
        store.discard(FIRST, [0, 1], "no_signal")
    assert states(store) == {"stored": 1, "taken": 1}


def test_advance_marks_the_groups_applied_and_opens_the_gate(opened):
    store = opened(max_lag=0)
    play(store, 4)
    taken(store, FIRST, 4)
    store.advance(ONE)
    store.advance(ONE)  # a repetition
    assert store.published() == ONE
    assert states(store) == {"applied": 4}
    assert len(reserve(store, 9, version=ONE)) == 4


def test_versions_are_published_one_after_the_other(opened):
    with pytest.raises(StoreError, match=r"0\.2 does not follow the published 0\.0"):
        opened().advance(TWO)


def test_the_next_step_may_take_before_its_version_is_published(opened):
    store = opened()
    play(store, 8)
    taken(store, FIRST, 4)
    assert taken(store, ONE, 4) == [4, 5, 6, 7]
    store.advance(ONE)
    assert states(store) == {"applied": 4, "taken": 4}
    store.advance(TWO)
    assert states(store) == {"applied": 8}


def test_a_step_further_ahead_may_not_take(opened):
    with pytest.raises(StoreError, match="cannot take while"):
        opened().take(TWO, 1)


def test_groups_beyond_max_lag_are_dropped_as_stale_at_take(opened):
    store = opened(max_lag=1, groups_per_step=2)
    play(store, 2)
    slow = reserve(store, 2, version=FIRST)
    step(store, FIRST, 2)
    play(store, 2, version=ONE)
    step(store, ONE, 2)
    for ticket in slow:
        store.put(ticket, b"x", FIRST)
    assert play(store, 2, version=TWO) == [6, 7]
    answer = store.take(TWO, 2)
    assert answer.stale == 2
    assert [group.index for group in answer.groups] == [6, 7]
    assert store.counts().dropped == {"stale": 2}


def test_a_group_at_exactly_max_lag_is_taken(opened):
    store = opened(max_lag=1, groups_per_step=2)
    play(store, 4)
    step(store, FIRST, 2)
    assert store.take(ONE, 2).stale == 0


def test_a_lower_max_lag_makes_groups_stale_that_were_not(opened):
    store = opened(max_lag=1, groups_per_step=2)
    play(store, 4)
    step(store, FIRST, 2)
    store.amend(replace(RULES, max_lag=0, groups_per_step=2))
    assert store.take(ONE, 2).stale == 2


def test_commit_counts_each_group_once_and_only_up_to_its_version(opened):
    store = opened(groups_per_step=2)
    play(store, 4)
    step(store, step(store, FIRST, 2), 2)
    assert store.commit(ONE) == 2
    assert store.commit(ONE) == 0
    assert states(store) == {"applied": 2, "committed": 2}
    assert store.commit(TWO) == 2


def test_a_version_is_committed_only_after_it_was_published(opened):
    store = opened()
    play(store, 4)
    taken(store, FIRST, 4)
    with pytest.raises(StoreError, match="advance first"):
        store.commit(ONE)
    with pytest.raises(StoreError, match="advance first"):
        store.memo(ONE)


def test_no_checkpoint_can_be_made_of_a_version_before_the_last_commit(opened):
    store = opened(groups_per_step=2)
    play(store, 4)
    step(store, step(store, FIRST, 2), 2)
    assert store.memo(ONE).committed == 2
    store.commit(TWO)
    with pytest.raises(StoreError, match=r"0\.1 is older than the last commit, 0\.2"):
        store.memo(ONE)
    assert store.memo(TWO).committed == 4


def test_waiting_is_pointless_only_when_nothing_is_stored_in_flight_or_to_be_issued(opened):
    store = opened(prompts=2)
    assert not store.take(FIRST, 4).exhausted  # to be issued
    tickets = reserve(store, 2)
    assert not store.take(FIRST, 4).exhausted  # in flight
    store.refuse(tickets[0], "quorum")
    store.put(tickets[1], b"x", FIRST)
    answer = store.take(FIRST, 4)
    assert ([group.index for group in answer.groups], answer.exhausted) == ([1], True)


def test_with_max_lag_zero_and_no_signal_in_any_group_the_system_goes_on(opened):
    store = opened(max_lag=0, groups_per_step=3)
    for round_ in range(20):
        played = play(store, 99)
        assert len(played) == 3, f"blocked in round {round_}"
        assert taken(store, FIRST, 3) == played
        store.discard(FIRST, played, "no_signal")
    assert store.counts().dropped == {"no_signal": 60}
    play(store, 99)
    assert step(store, FIRST, 3) == ONE


def test_a_gate_held_by_hand_gives_no_new_prompt_but_what_was_returned_and_opens_again(opened):
    store = opened(groups_per_step=2)
    played = reserve(store, 2)
    store.release(played[0], b"half")
    store.hold(True)
    store.hold(True)
    assert store.gate() == "held"
    answer = store.reserve("w", FIRST, 2, 60.0, "while held")
    assert ([ticket.index for ticket in answer.tickets], answer.closed) == ([played[0].index], "held")
    store.put(played[1], b"whole", FIRST)
    store.put(answer.tickets[0], b"whole", FIRST)
    assert step(store, FIRST, 2) == ONE, "the learner goes on with what is there"
    assert store.take(ONE, 1).exhausted is False, "closed by hand is not the end of the prompts"
    store.hold(False)
    assert store.gate() == ""
    assert store.reserve("w", ONE, 1, 60.0, "open").tickets


def test_the_queue_is_as_old_as_its_oldest_stored_group_and_an_empty_one_has_no_age(opened):
    store = opened(max_lag=1, groups_per_step=1)
    assert store.counts().queue_age == 0
    for _ in range(2):
        play(store, 1)
        time.sleep(0.15)
    assert store.counts().queue_age >= 0.3
    taken(store, FIRST, 1)
    assert store.counts().queue_age >= 0.15  # the younger one is still there
    store.drain("run_ended")
    assert store.counts().queue_age == 0


def test_the_end_drops_what_is_outstanding_and_admits_nothing(opened):
    store = opened(groups_per_step=2)
    play(store, 3)
    (kept,) = reserve(store, 1)
    step(store, FIRST, 2)
    assert store.drain("run ended") == 2
    assert store.drain("run ended") == 0
    answer = store.reserve("w", ONE, 4, 60.0, "r")
    assert (answer.tickets, answer.closed) == ((), "draining")
    assert store.take(ONE, 2).exhausted
    assert states(store) == {"applied": 2, "dropped": 2}
    with pytest.raises(Fenced):
        store.put(kept, b"late", FIRST)


def test_a_replaced_learner_can_change_nothing(opened):
    store = opened(groups_per_step=2)
    play(store, 4)
    step(store, FIRST, 2)
    store.reconcile(FIRST, 0, "second learner")
    for call in (
        lambda: store.take(ONE, 2),
        lambda: store.discard(ONE, [0], "x"),
        lambda: store.advance(TWO),
        lambda: store.commit(ONE),
        lambda: store.memo(ONE),
    ):
        with pytest.raises(StoreError, match="another learner has taken over"):
            call()
    assert states(store) == {"stored": 4}


# --- presence and pins ------------------------------------------------------------------------------


def test_a_worker_that_falls_silent_is_forgotten(blank):
    blank.announce("rollout-0", {"version": "0.3", "tokens_per_second": 4100.5}, ttl=30.0)
    blank.announce("rollout-1", {}, ttl=0.0)
    assert blank.workers() == {"rollout-0": {"version": "0.3", "tokens_per_second": 4100.5}}
    blank.announce("rollout-0", {"version": "0.4"}, ttl=30.0)
    assert blank.workers() == {"rollout-0": {"version": "0.4"}}


def test_a_pin_ends_when_it_is_taken_off_or_expires(blank):
    blank.pin(ONE, "audit", 30.0)
    blank.pin(ONE, "rollout-0", 30.0)
    blank.pin(Version(1, 7), "rollout-1", 0.0)
    assert blank.pinned() == {ONE}
    blank.unpin(ONE, "audit")
    assert blank.pinned() == {ONE}
    blank.unpin(ONE, "rollout-0")
    blank.unpin(ONE, "rollout-0")
    assert blank.pinned() == frozenset()
