"""A state machine drives the ledger as a run does, on a real Redis server that is killed and a network that fails, and
compares it after every call with `ledger_model`, and what lies in the store with what must be true of every ledger.

Who takes part, and every call that changes something:

    three workers     reserve, renew, put, put_all, release, refuse; with new tickets and with those that are long void
    the learner       reconcile, take, discard, advance, memo, commit; its checkpoints stay on a disk; it dies between
                      any two calls, comes back, or falls back to an older checkpoint
    a former learner  take, discard, advance, memo, commit when it has been replaced
    the supervisor    attach, amend, hold, drain, expire, pin, unpin, announce, and erase at the end
    whoever looks on  published, forks, gate, counts, pinned, workers, after every step
    the network       requests that are lost or cut, replies that are lost, requests that arrive late, when others have
                      gone on (`ledger_faults.Fault`). Clients try again until they are heard, or give up; any call may
                      be said again later, word by word
    the server        SIGKILL before, while and after it executes, and at rest; a loss of power that takes the end of
                      its file, in the middle of a transition too; a loss of its disk
    time              leases, pins, announcements and kept answers end

The short profile runs with the unit tests, the same walks every time. The long one takes new walks, for a quarter of
an hour and more:

    python -m pytest tests/services/store/test_store_machine.py --hypothesis-profile=long --timeout=0
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test
from ledger_faults import Fault
from ledger_machine import GOOD, NOTHING, Checkpoint, Driven, Learner, Luck
from ledger_places import TICK, MemoryPlace, RedisPlace

from penstock.services.replay import Finished, LedgerMemo, LedgerRules, ReplayStore, Reservation, Taken, Ticket
from penstock.services.versions import FIRST, Version

ACCIDENTS = [
    *[Fault.NONE] * 30,
    Fault.REPLY_LOST,
    Fault.REPLY_LOST,
    *[fault for fault in Fault if fault.value <= Fault.LATE.value] * 3,
    *Fault,
]
LUCK = st.builds(Luck, st.sampled_from(ACCIDENTS), st.sampled_from([0, 0, 0, 1]), st.booleans())
LEASES = st.sampled_from([2.5 * TICK, 0.5 * TICK, 0.0])
"""Seconds; 0 has ended at once."""
WORKER = st.sampled_from("abc")
MISHAPS = ["", "", "", "", "killed", "killed", "power", "power", "power", "drained", "disk", "overtaken", "overtaken"]
WHICH = st.integers(0, 9)
"""One of several, the newest first. What is drawn never depends on what has happened: a server that is killed while it
executes makes no two walks alike."""
PAYLOADS = st.binary(min_size=1, max_size=30)
SOME = st.lists(WHICH, min_size=1, max_size=3)
ACTS = ["put", "put_all", "release", "refuse", "renew"]
STRANGE = Version(77, 3)
"""Of a lineage that no ledger here ever opens."""


class Run(Driven):
    """Everything that may happen to a run's ledger."""

    @initialize(
        max_lag=st.integers(0, 3),
        groups=st.integers(1, 3),
        prompts=st.none() | st.integers(0, 40) | st.just(100),
        max_bytes=st.sampled_from([10**9, 10**9, 10**9, 60]),
    )
    def a_run_begins(self, max_lag: int, groups: int, prompts: int | None, max_bytes: int) -> None:
        self.rules = LedgerRules(max_lag, groups, prompts, max_bytes)
        self.call(self.supervisor, "attach", self.rules)
        self.start_from(NOTHING, GOOD)

    # --- workers ------------------------------------------------------------------------------------

    @rule(worker=WORKER, version=WHICH, want=st.integers(1, 5), lease=LEASES, luck=LUCK)
    def a_worker_reserves(self, worker: str, version: int, want: int, lease: float, luck: Luck) -> None:
        asked = (worker, self.version(version), want, lease, f"{worker}-{next(self.requests)}")
        answer = self.call(self.workers[worker], "reserve", *asked, luck=luck)
        if isinstance(answer, Reservation):
            ends = self.place.now() + lease
            assert all(abs(ticket.expires - ends) < TICK / 3 for ticket in answer.tickets)

    @rule(what=st.sampled_from(ACTS), worker=WORKER, tickets=SOME, payload=PAYLOADS, version=WHICH, luck=LUCK)
    def a_worker_has_something_to_say(
        self, what: str, worker: str, tickets: list[int], payload: bytes, version: int, luck: Luck
    ) -> None:
        """With any ticket that was ever handed out, whatever has become of its group."""
        if not self.tickets:
            self.a_worker_reserves(worker, 0, 3, 2.5 * TICK, GOOD)
        store, held, at = self.workers[worker], self.some_tickets(*tickets), self.version(version)
        if what == "renew":
            self.call(store, "renew", worker, held, 2.5 * TICK if version % 2 else 0.0, luck=luck)
        elif what == "put_all":
            self.call(store, "put_all", tuple(Finished(ticket, payload, at) for ticket in held), luck=luck)
        for ticket in held[:1]:
            if what == "put":
                self.call(store, "put", ticket, payload, at, luck=luck)
            elif what == "release":
                self.call(store, "release", ticket, payload if version % 3 else None, luck=luck)
            elif what == "refuse":
                self.call(store, "refuse", ticket, ("quorum", "unscored")[version % 2], f"{ticket.index}", luck=luck)

    def some_tickets(self, *which: int) -> tuple[Ticket, ...]:
        """Of the last ones that were handed out; among them are some that are long void."""
        return tuple(dict.fromkeys(self.tickets[-1 - number % len(self.tickets)] for number in which if self.tickets))

    def version(self, which: int) -> Version:
        """Mostly of the last few that were published."""
        return (*[self.versions[-1]] * 4, *self.versions[-5:-1], STRANGE)[which % (5 + len(self.versions[-5:-1]))]

    # --- the learner --------------------------------------------------------------------------------

    def start_from(self, checkpoint: Checkpoint, luck: Luck, store: ReplayStore | None = None) -> None:
        """A new learner process, with a client that knows nothing; or one that goes back by itself, with its own."""
        request = f"start-{next(self.requests)}"
        arguments = (checkpoint.version, checkpoint.issued, request, checkpoint.memo)
        if store is None:  # its first command asks for the lineages, its second is what matters
            store, luck = self.place.connect(), replace(luck, at=int(luck.at == 0))
        self.call(store, "reconcile", *arguments, luck=luck)

    @rule(which=WHICH, luck=LUCK, twice=st.booleans(), itself=st.booleans())
    def a_learner_comes_back(self, which: int, luck: Luck, twice: bool, itself: bool) -> None:
        """A store that has lost something is met by the newest checkpoint there is, as `penstock resume` chooses it."""
        newest = sorted(self.disk, key=lambda checkpoint: checkpoint.version)[-1:]
        choice = [*newest * 3, *([] if self.robbed else self.disk[-4:])] or [NOTHING]
        self.call(self.supervisor, "amend", self.rules)
        self.start_from(choice[which % len(choice)], luck, self.learner.store if itself else None)
        if twice:
            self.say(self.said[-1], GOOD)

    @rule(ahead=st.sampled_from([0, 0, 1, 2]), want=st.integers(0, 4), luck=LUCK)
    def the_learner_takes(self, ahead: int, want: int, luck: Luck) -> None:
        self.call(self.learner.store, "take", self.at(self.learner, ahead), want, luck=luck)

    @rule(which=st.lists(WHICH, min_size=1, max_size=3), luck=LUCK, overlaps=st.booleans())
    def the_learner_discards(self, which: list[int], luck: Luck, overlaps: bool) -> None:
        """Groups that it has taken for this step; and, by mistake, others, such as those of the next."""
        if overlaps:
            self.call(self.learner.store, "take", self.at(self.learner, 1), 2)
        held = [*sorted(self.content.indices("taken")) * 3, 0, 3]
        some = tuple(held[number % len(held)] for number in which)
        self.call(self.learner.store, "discard", self.at(self.learner), some, "no_signal", luck=luck)

    @rule(luck=LUCK, overlaps=st.booleans())
    def the_learner_makes_a_step(self, luck: Luck, overlaps: bool) -> None:
        """From all that it has taken, and from nothing else; the next step may begin before this one is published."""
        now = self.at(self.learner)
        taken = self.call(self.learner.store, "take", now, self.rules.groups_per_step)
        if overlaps:
            self.call(self.learner.store, "take", now.next(), self.rules.groups_per_step)
        self.call(self.learner.store, "advance", now.next(), luck=luck)
        if isinstance(taken, Taken) and self.model.now == now.next():
            applied = {index for index, group in self.content.groups.items() if group.state == "applied"}
            seen = {group.index for group in taken.groups}
            assert seen == {index for index in applied if self.content.groups[index].step == now.step + 1}

    @rule(back=st.sampled_from([0, 0, 0, 1, 2]), luck=LUCK, commits=st.booleans())
    def the_learner_writes_a_checkpoint(self, back: int, luck: Luck, commits: bool) -> None:
        """Between its rename and the commit anything may happen."""
        version = self.at(self.learner, -back)
        memo = self.call(self.learner.store, "memo", version, luck=luck)
        fork = self.model.forks.get(version.lineage, FIRST)
        if not isinstance(memo, LedgerMemo) or version.step < fork.step:  # one before the fork has another name
            return
        memo = LedgerMemo.from_dict(json.loads(json.dumps(memo.as_dict())))
        trained = frozenset(index for index, step in self.trained.items() if step <= version.step)
        self.disk.append(Checkpoint(version, memo, self.model.states(version), trained))
        if commits:
            self.call(self.learner.store, "commit", version, luck=luck)

    @rule(which=WHICH, luck=LUCK)
    def the_learner_commits(self, which: int, luck: Luck) -> None:
        mine = [c.version for c in self.disk if c.version.lineage == self.learner.lineage] or [FIRST]
        self.call(self.learner.store, "commit", mine[-1 - which % len(mine)], luck=luck)

    @rule(what=st.sampled_from(["take", "discard", "advance", "memo", "commit"]), step=st.integers(0, 4), luck=LUCK)
    def a_former_learner_goes_on(self, what: str, step: int, luck: Luck) -> None:
        more = {"take": (2,), "discard": ((0, 1), "no_signal")}.get(what, ())
        self.call(self.former.store, what, Version(self.former.lineage, step), *more, luck=luck)

    def at(self, learner: Learner, ahead: int = 0) -> Version:
        """The version that was last published in the learner's lineage, or so many steps from it."""
        now = self.model.now
        step = now.step if now and now.lineage == learner.lineage else 1
        return Version(learner.lineage, max(0, step + ahead))

    # --- the supervisor -----------------------------------------------------------------------------

    @rule(
        what=st.sampled_from(["expire", "lapse", "attach", "hold", "pin", "announce"]),
        which=WHICH,
        seconds=LEASES,
        luck=LUCK,
    )
    def the_supervisor_does_its_work(self, what: str, which: int, seconds: float, luck: Luck) -> None:
        arguments: dict[str, tuple[Any, ...]] = {
            "expire": (),
            "lapse": (("", "a", "b", "c")[which % 4],),
            "attach": (self.rules if which < 6 else replace(self.rules, groups_per_step=9),),
            "hold": (which in (3, 4),),
            "pin": (self.version(which), "ab"[which % 2], seconds),
            "unpin": (self.version(which), "ab"[which % 2]),
            "announce": ("ab"[which % 2], {"tokens": which, "at": "0.1"}, seconds),
        }
        if what == "pin" and which > 4:
            what = "unpin"
        if what != "attach" or self.model.rules is not None:  # else these would be the run's
            self.call(self.supervisor, what, *arguments[what], luck=luck)

    @rule(max_lag=st.integers(0, 3), max_bytes=st.sampled_from([10**9] * 4 + [60]), more=st.integers(0, 5), luck=LUCK)
    def the_rules_are_changed(self, max_lag: int, max_bytes: int, more: int, luck: Luck) -> None:
        prompts = None if self.rules.prompts is None else self.rules.prompts + more
        self.rules = replace(self.rules, max_lag=max_lag, max_bytes=max_bytes, prompts=prompts)
        self.call(self.supervisor, "amend", self.rules, luck=luck)

    # --- nothing goes wrong for a while -------------------------------------------------------------

    @rule(
        saves=st.sampled_from(["before", "after", ""]),
        steps=st.integers(1, 3),
        late=st.booleans(),
        overlaps=st.booleans(),
        many=WHICH,
    )
    def the_run_goes_well(self, saves: str, steps: int, late: bool, overlaps: bool, many: int) -> None:
        """Workers play what they get, and the learner makes steps of it."""
        if saves == "before":
            self.the_learner_writes_a_checkpoint(0, GOOD, many % 2 == 0)
        for _ in range(steps):
            version = self.versions[-2:][0 if late else -1]
            asked = ("a", version, self.rules.groups_per_step + many // 2, 2.5 * TICK, f"a-{next(self.requests)}")
            answer = self.call(self.workers["a"], "reserve", *asked)
            for ticket in answer.tickets if isinstance(answer, Reservation) else ():
                self.call(self.workers["a"], "put", ticket, b"%d by %d" % (ticket.index, ticket.fence), version)
            self.the_learner_makes_a_step(GOOD, overlaps)
        if saves == "after":
            self.the_learner_writes_a_checkpoint(0, GOOD, many % 2 == 0)

    @rule(seconds=st.sampled_from([0.0, 0.5 * TICK]), partial=st.booleans(), luck=LUCK, then=WHICH, payload=PAYLOADS)
    def a_group_is_given_to_another_worker(
        self, seconds: float, partial: bool, luck: Luck, then: int, payload: bytes
    ) -> None:
        """A lease ends, or a group is handed back; another worker gets it; then both come, in any order."""
        version = self.versions[-1]
        asked = (version, 1, seconds, f"slow-{next(self.requests)}")
        answer = self.call(self.workers["b"], "reserve", "b", *asked)
        first = answer.tickets if isinstance(answer, Reservation) else ()
        if partial:
            for ticket in first:
                self.call(self.workers["b"], "release", ticket, payload, luck=luck)
        elif seconds:
            self.time_passes(1)
        if then in (0, 3, 6):  # its lease has been seen to have ended, and nobody else has the group yet
            self.call(self.supervisor, "expire")
            for ticket in first:
                if then == 0:
                    self.call(self.workers["b"], "renew", "b", (ticket,), 2.5 * TICK)
                if then == 6:
                    self.call(self.workers["b"], "release", ticket, payload)
                if then != 0:
                    self.call(self.workers["b"], "put", ticket, payload, version)
        asked = (version, 1, 2.5 * TICK, f"next-{next(self.requests)}")
        answer = self.call(self.workers["c"], "reserve", "c", *asked, luck=luck)
        second = answer.tickets if isinstance(answer, Reservation) else ()
        for ticket in (*first, *second) if then % 2 else (*second, *first):
            if then < 7:
                self.call(self.workers["b"], "put", ticket, payload + b"%d" % ticket.fence, version)
            elif then < 8:
                self.call(self.workers["b"], "release", ticket, payload)
            else:
                self.call(self.workers["b"], "refuse", ticket, "quorum")

    @rule(steps=st.integers(1, 2), itself=st.booleans(), late=st.booleans())
    def a_run_is_rolled_back_beyond_a_commit(self, steps: int, itself: bool, late: bool) -> None:
        """To a checkpoint before it; what was used since is played again. A worker that has slept meanwhile still has
        the weights of the lost future, and its client the lineages of then."""
        self.the_learner_writes_a_checkpoint(0, GOOD, True)
        older = self.disk[-1:]
        self.the_run_goes_well("after", steps, late=False, overlaps=late, many=4)
        lost = self.versions[-1]
        self.call(self.workers["b"], "reserve", "b", lost, 1, 0.0, f"b-{next(self.requests)}")
        if older and not self.robbed:
            self.start_from(older[0], GOOD, self.learner.store if itself else None)
        self.the_run_goes_well("", steps, late=late, overlaps=False, many=2)
        self.call(self.workers["b"], "reserve", "b", lost, 2, 2.5 * TICK, f"b-{next(self.requests)}")

    # --- accidents ----------------------------------------------------------------------------------

    @rule(which=WHICH, luck=LUCK)
    def a_call_is_said_again(self, which: int, luck: Luck) -> None:
        for call in self.said[-1 - which % 8 :][:1]:
            self.say(call, luck)

    @rule(which=WHICH)
    def a_request_arrives_late(self, which: int) -> None:
        if self.late:
            self.arrives_late(which % len(self.late))

    @rule(ticks=st.sampled_from([1, 2, 3, 6]))
    def time_passes(self, ticks: int) -> None:
        self.place.time_passes(ticks)
        self.model.clock += ticks * TICK
        self.look_again()
        self.remember(99)

    @rule(what=st.sampled_from(MISHAPS), back=WHICH, torn=st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.95]))
    def an_accident(self, what: str, back: int, torn: float) -> None:
        if what == "drained":
            self.call(self.supervisor, "drain", "run_ended", luck=Luck(Fault.REPLY_LOST) if back > 6 else GOOD)
        elif what == "overtaken":  # an order of the old run is on its way while a new one begins
            orders = [("drain", "run_ended"), ("hold", True), ("amend", replace(self.rules, max_lag=9))]
            name, argument = orders[back % 3]
            self.call(self.supervisor, name, argument, luck=Luck(Fault.LATE, patient=False))
            self.a_learner_comes_back(back, GOOD, twice=False, itself=False)
            if self.late:
                self.arrives_late(len(self.late) - 1)
        elif what == "disk":
            self.lose_disk()
        elif what == "power" and len(self.moments) > 1:
            self.lose_power(back % (len(self.moments) - 1), torn)
            if back % 2:  # what is written behind a torn end is read at the next start
                self.call(self.supervisor, "amend", self.rules)
                self.place.kill()
                self.look_again()
        elif what == "killed" and self.place.durable:
            self.place.kill()
            self.late.clear()
            self.look_again()


LONG = settings.get_current_profile_name() == "long"


def walk(place: Any, walks: int) -> None:
    class Here(Run):
        pass

    Here.place = place
    short = settings(max_examples=walks, stateful_step_count=40, derandomize=True)
    chosen = settings() if LONG else short
    run_state_machine_as_test(Here, settings=settings(chosen, deadline=None, suppress_health_check=list(HealthCheck)))


@pytest.fixture(params=["never", "always"] if LONG else ["never"])
def bad_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisPlace]:
    place = RedisPlace(tmp_path, request.param)
    yield place
    place.stop()


def test_a_ledger_on_redis_does_what_the_model_says_whatever_happens_to_it(bad_place):
    walk(bad_place, 10)


def test_a_ledger_in_memory_does_what_the_model_says():
    walk(MemoryPlace(), 15)
