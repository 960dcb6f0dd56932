"""How the state machine makes a call: on the real store, in the model, and then it compares what came of it."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, invariant
from ledger_faults import Fault
from ledger_model import OUTSTANDING, FencedCall, Model, RefusedCall, States
from ledger_places import TICK, Content, content_of

from penstock.services.contracts import Fenced, StoreError
from penstock.services.replay import LedgerMemo, LedgerRules, ReplayStore, Reservation, Ticket
from penstock.services.versions import FIRST, Version

FENCED, REFUSED, GAVE_UP = "fenced", "refused", "gave up"
SCRIPTS = {"amend": "attach", "put_all": "put", "pin": "pins", "unpin": "pins", "announce": "presence"}
"""The calls whose script has another name."""
OF_ONE_LIFE = ("reserve", "reconcile", "drain", "hold", "amend")
"""Calls that must change nothing when they arrive after another learner has taken over."""
NO_LINEAGE = 99
"""Of a learner that has not reconciled."""
_PATIENT = 60.0


@dataclass(frozen=True)
class Luck:
    """What befalls one call."""

    fault: Fault = Fault.NONE
    at: int = 0
    """Which of the call's commands it befalls."""
    patient: bool = True
    """Whether the client tries again by itself, or gives up at once."""


GOOD = Luck()


@dataclass(frozen=True)
class Call:
    """One call of a client, so that it can be said again."""

    store: ReplayStore
    name: str
    arguments: tuple[Any, ...]
    lineage: int | None
    """In which lineage the store was when it was said."""


@dataclass(frozen=True)
class Checkpoint:
    """On the learner's disk."""

    version: Version
    memo: LedgerMemo | None = None
    states: States = field(default_factory=dict)
    trained: frozenset[int] = frozenset()
    """What its weights have been trained on."""

    @property
    def issued(self) -> int:
        return self.memo.issued if self.memo else 0


NOTHING = Checkpoint(FIRST)
"""What a learner starts from that has no checkpoint."""


@dataclass(frozen=True)
class Learner:
    store: ReplayStore
    lineage: int


@dataclass(frozen=True)
class Moment:
    """What there was when the append-only file had so many bytes."""

    written: int
    state: bytes
    transitions: int
    """How many have been made since the moment before."""


class Driven(RuleBasedStateMachine):
    """One run's ledger in a place, the model of it, and what its processes know."""

    place: Any
    """Set by a subclass: a `RedisPlace` or a `MemoryPlace`."""

    def __init__(self) -> None:
        super().__init__()
        self.place.begin()
        self.model = Model()
        self.rules: LedgerRules
        self.trained: dict[int, int] = {}
        """Every group that the surviving weights have been trained on, with the step until which they have been."""
        self.disk: list[Checkpoint] = []
        self.moments: list[Moment] = []
        self.requests, self.looks = itertools.count(), itertools.count()
        self.robbed = False
        """The store has lost its last writes, or everything, and no learner has come back since."""
        self.all_die()

    def teardown(self) -> None:
        self.place.end()

    def all_die(self) -> None:
        """The processes of the run end; nobody remembers a ticket. New ones know what the store and the disk know."""
        self.workers = {name: self.place.connect() for name in ("a", "b", "c")}
        self.supervisor: ReplayStore = self.place.connect()
        self.learner = self.former = Learner(self.place.connect(), NO_LINEAGE)
        self.tickets: list[Ticket] = []
        self.said: list[Call] = []
        self.late: list[Call] = []
        self.versions = [self.model.now or FIRST]
        self.content: Content = self.place.content()

    @property
    def lineage(self) -> int | None:
        """Whose learner the store listens to."""
        return self.model.now.lineage if self.model.now else None

    # --- calls --------------------------------------------------------------------------------------

    def call(self, store: ReplayStore, name: str, *arguments: Any, luck: Luck = GOOD) -> Any:
        call = Call(store, name, arguments, self.lineage)
        self.said = [*self.said, call][-8:]
        return self.say(call, luck)

    def say(self, call: Call, luck: Luck) -> Any:
        """Make a call, and the same in the model; compare the answers and the contents."""
        counts, answer = self._ask(call, luck) if self.place.durable else ({1}, self._answer(call))
        before, self.content = self.content, self.place.content()
        worlds, seen = [], []
        for count in sorted(counts):
            world = self.model if len(counts) == 1 else copy(self.model)
            expected: Any = GAVE_UP
            for _ in range(count):
                expected = self._expected(world, call)
            seen.append((expected, content_of(world)))
            if (answer == GAVE_UP or same(answer, expected)) and seen[-1][1] == self.content:
                worlds.append(world)
        assert worlds, f"{call.name}{call.arguments} → {answer}, {self.content}\nexpected one of {seen}"
        self.model = worlds[0]
        self._judge(call, before)
        self.remember(max(counts))
        if answer not in (GAVE_UP, REFUSED, FENCED):
            self.heard(call, answer)
        return answer

    def heard(self, call: Call, answer: Any) -> None:
        """What the client makes of an answer."""
        if call.name == "reserve":
            self.tickets += [ticket for ticket in answer.tickets if ticket not in self.tickets]
        elif call.name == "reconcile" and answer.lineage == self.model.published().lineage:
            if answer.lineage != self.learner.lineage:  # else it has heard it a second time
                self.former, self.learner = self.learner, Learner(call.store, answer.lineage)
            self.robbed = False

    def arrives_late(self, which: int) -> None:
        """A request that its client has given up long ago takes effect after all, and nobody hears of it."""
        script, tag = self.place.network.deliver_late(which)
        call = self.late.pop(which)
        before, self.content = self.content, self.place.content()
        former_life = call.name in OF_ONE_LIFE and self.lineage != call.lineage
        if script == SCRIPTS.get(call.name, call.name) and not tag.startswith((b"-NOSCRIPT", b"forks")):
            expected = self._expected(self.model, call)
            right = {FENCED: (b"fenced", b"ok"), REFUSED: (b"wrong", b"unattached")}.get(str(expected), (b"ok",))
            assert tag in right, f"late {call.name}{call.arguments} → {tag!r}, expected {expected}"
        assert content_of(self.model) == self.content
        assert not former_life or self.content == before, f"{call.name} of a former life has changed the ledger"
        self._judge(call, before)
        self.remember(1)

    def _ask(self, call: Call, luck: Luck) -> tuple[set[int], Any]:
        """How many times the server may have executed the call, and the answer."""
        network, connection = self.place.network, call.store._connection
        network.plan(luck.fault, luck.at)
        waiting = len(network.late)
        connection._deadline = _PATIENT if luck.patient else 0.0
        answer = self._answer(call)
        connection._deadline = _PATIENT
        passed, script = network.passed, SCRIPTS.get(call.name, call.name)
        network.plan()
        assert answer != GAVE_UP or (passed.broken and not luck.patient), "the store did not answer"
        if luck.fault.name.startswith("KILLED") and passed.broken:
            self.late.clear()
        elif len(network.late) > waiting:
            self.late.append(replace(call, lineage=self.lineage))
        surely = sum(name == script and tag != b"forks" for name, tag in passed.executed)
        perhaps = passed.unknown.count(script)
        if not surely and not perhaps and answer != GAVE_UP:
            surely = 1  # the client knew the answer itself
        return {surely, surely + perhaps}, answer

    def _answer(self, call: Call) -> Any:
        try:
            return getattr(call.store, call.name)(*call.arguments)
        except Fenced:
            return FENCED
        except StoreError as error:
            return GAVE_UP if "did not answer" in str(error) else REFUSED

    def _expected(self, model: Model, call: Call) -> Any:
        """The model's answer. That a call which is said again at once changes nothing is a part of the contract."""
        arguments = (*call.arguments, self.known_by(call).states) if call.name == "reconcile" else call.arguments
        before = content_of(model)
        try:
            answer = getattr(model, call.name)(*arguments)
        except (FencedCall, RefusedCall) as error:
            assert content_of(model) == before, f"{call.name} is an error and changes something"
            return FENCED if isinstance(error, FencedCall) else REFUSED
        twin = copy(model)
        getattr(twin, call.name)(*arguments)
        assert content_of(twin) == content_of(model), f"{call.name} cannot be repeated"
        return answer

    def known_by(self, call: Call) -> Checkpoint:
        """The checkpoint from which a learner reconciles."""
        memo = call.arguments[3]
        return next((checkpoint for checkpoint in self.disk if checkpoint.memo is memo), NOTHING)

    # --- what must be true of every ledger, from what lies in the store ------------------------------

    def _judge(self, call: Call, before: Content) -> None:
        after, rules = self.content, self.model.rules
        if after.now != before.now and call.name == "reconcile":
            assert after.now is not None
            assert before.now is None or after.now.lineage > before.now.lineage, "a lineage was opened twice"
            self.trained = dict.fromkeys(self.known_by(call).trained, after.now.step)
        elif after.now != before.now:
            assert call.name == "advance", "only a step publishes"
            assert before.now is not None and after.now == before.now.next(), "versions are published one by one"
            used = {i for i, group in after.groups.items() if group.state == "applied" and group.step == after.now.step}
            assert used == {i for i in before.indices("taken") if before.groups[i].step < after.now.step}
            assert not used & set(self.trained), "a group was applied again"
            self.trained |= dict.fromkeys(used, after.now.step)
        elif call.name == "reserve" and after.issued > before.issued:
            behind = self.model.lag(self.model.published(), call.arguments[1])
            assert rules is not None and behind is not None
            assert after.outstanding <= (rules.max_lag + 1 - behind) * rules.groups_per_step, "the gate was too wide"
        if after.now is not None and after.now not in self.versions:
            self.versions.append(after.now)

    @invariant()
    def nothing_is_lost_and_what_was_trained_on_is_done_with(self) -> None:
        content = self.content
        again = content.indices(*OUTSTANDING) & set(self.trained)
        assert not again, f"groups {again} would be trained on again"
        assert content.committed + len(content.indices("applied")) == len(self.trained)
        assert content.issued == len(content.groups) + content.committed + sum(content.dropped.values())

    @invariant()
    def all_who_look_see_what_the_model_says(self) -> None:
        if self.model.now is None:
            return
        look, model = self.place.onlooker, self.model
        counts, expected = look.counts(), model.counts()
        assert counts.balanced, counts
        assert counts == expected
        assert counts.queue_age // TICK == expected.queue_age // TICK
        assert look.gate() == model.gate()
        if next(self.looks) % 4 == 0:
            assert (look.published(), look.forks()) == (model.now, model.forks)
            assert (look.pinned(), look.workers()) == (model.pinned(), model.workers())

    def look_again(self) -> None:
        """After something that is no call."""
        self.content = self.place.content()
        assert content_of(self.model) == self.content

    # --- the past -----------------------------------------------------------------------------------

    def remember(self, transitions: int) -> None:
        """So that a loss of power can go back to here."""
        if self.place.durable:
            moment = Moment(self.place.written(), pickle.dumps((self.model, self.trained)), transitions)
            self.moments = [*self.moments, moment][-8:]

    def lose_power(self, back: int, torn: float) -> None:
        """The end of the server's file is gone, `torn` of the transition that followed the moment excepted."""
        self.moments = self.moments[: len(self.moments) - back]
        *_, moment, following = self.moments
        kept = moment.written
        if following.transitions == 1:
            kept += int(torn * max(0, following.written - moment.written - 1))
        self.place.lose_power(kept)
        self.model, self.trained = pickle.loads(moment.state)  # noqa: S301  (our own)
        self.moments.clear()
        self.robbed = True
        self.all_die()
        self.look_again()
        self.remember(0)

    def lose_disk(self) -> None:
        self.place.lose_disk()
        self.model, self.trained = Model(clock=self.model.clock), {}
        self.moments.clear()
        self.robbed = True
        self.all_die()
        self.look_again()


def copy(model: Model) -> Model:
    return pickle.loads(pickle.dumps(model))  # noqa: S301  (our own)


def same(answer: Any, expected: Any) -> bool:
    """The ends of leases are by another clock; `ledger_places.Group` compares them."""
    return bool(_without_ends(answer) == _without_ends(expected))


def _without_ends(answer: Any) -> Any:
    if not isinstance(answer, Reservation):
        return dict(answer) if isinstance(answer, Mapping) else answer
    tickets = [(ticket.index, ticket.fence, ticket.partial) for ticket in answer.tickets]
    return tickets, answer.published, answer.closed
