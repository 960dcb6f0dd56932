"""The ledger as its raw records tell it, kept a second time: which prompt is where, by name and not by number.

The product counts what is committed and dropped; here every prompt is followed until its end, so that one that is
counted and yet gone, or that comes back when it should not, is found. Pure: transactions in, violations out.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from chaos.aof import Command, Transaction
from chaos.versions_seen import At, led_to, way_to
from chaos.violations import Violation

QUEUES = ("returned", "reserved", "stored", "taken", "applied")


@dataclass
class _Changes:
    """What one transaction did."""

    before: dict[int, str | None] = field(default_factory=dict)
    """The state that each prompt which it touched had."""
    meta: dict[str, str] = field(default_factory=dict)
    """Fields that it set."""
    recounted: bool = False
    """It began to count the dropped ones anew."""
    leased: set[int] = field(default_factory=set)
    """Prompts that were given a new fencing token."""


class Shadow:
    """Follows one run's keys. `feed` takes the transactions in their order; `violations` grows."""

    def __init__(self, run_id: str) -> None:
        self._prefix = f"penstock:{{{run_id}}}:".encode()
        self.violations: list[Violation] = []
        self.places: dict[int, dict[str, float]] = defaultdict(dict)
        """Of every prompt that is in the store: the queues that it stands in, with its score there."""
        self.committed: dict[int, At] = {}
        """In the surviving lineage: the step that used each."""
        self.dropped: set[int] = set()
        self.ever_dropped: set[int] = set()
        """In any lineage."""
        self.applied_at: dict[int, list[At]] = defaultdict(list)
        """In any lineage."""
        self.steps: dict[At, frozenset[int]] = {}
        """What each step has used."""
        self.meta: dict[str, str] = {}
        self.drops: dict[str, int] = {}
        self.forks: dict[int, At] = {}
        self.states: dict[int, str] = {}
        """What every entry says of itself."""
        self.ahead: set[int] = set()
        """Prompts beyond the cursor that were issued before a fall back, and are not issued again."""
        self.pins: list[str] = []
        """Who pinned a version to read it, in the order in which they did."""
        self.leased_again = 0
        """How often a group that had been returned was given to a worker."""
        self.delivered_again = 0
        """How often a group that a learner had taken was put back for the next learner."""

    # --- what is known now ------------------------------------------------------------------------

    @property
    def version(self) -> At | None:
        """The published one; None before any."""
        if "lineage" not in self.meta:
            return None
        return At(int(self.meta["lineage"]), int(self.meta["step"]))

    def holds(self, *queues: str) -> set[int]:
        """The prompts in these."""
        return {index for index, places in self.places.items() if any(queue in places for queue in queues)}

    @property
    def cursor(self) -> int:
        """Every prompt before this one has been issued."""
        return int(self.meta.get("issued", 0)) - len(self.ahead)

    def missing(self) -> set[int]:
        """Prompts that were issued and are nowhere now."""
        issued = {*range(self.cursor), *self.ahead}
        return issued - self.committed.keys() - self.dropped - {i for i, there in self.places.items() if there}

    # --- what happens -----------------------------------------------------------------------------

    def feed(self, transaction: Transaction) -> None:
        """One thing that the server has done."""
        changes, was, count = _Changes(), self.version, int(self.meta.get("issued", 0))
        for command in transaction:
            self._follow(command, changes)
        if not changes.before and not changes.meta and not changes.recounted:
            return
        if "reconcile" in changes.meta:
            self._reconciled(changes, was)
        else:
            self._moved(changes, was, count)
        self._check_states(changes)
        self._check_counts()

    def _say(self, promise: str, found: str) -> None:
        self.violations.append(Violation(promise, f"{found} (at version {self.version})"))

    def _follow(self, command: Command, changes: _Changes) -> None:
        if command[0].upper() in (b"DEL", b"UNLINK") and len(command) > 2:
            for key in command[1:]:  # one command, several keys
                self._follow((command[0], key), changes)
            return
        if len(command) < 2 or not command[1].startswith(self._prefix):
            return
        name, key = command[0].upper().decode(), command[1][len(self._prefix) :].decode()
        if key in QUEUES:
            self._queue(name, key, command[2:], changes)
        elif key.startswith("entry:"):
            self._entry(name, int(key[6:]), command[2:], changes)
        elif key == "meta":
            self._meta(name, command[2:], changes)
        elif key == "drops":
            self._drops(name, command[2:], changes)
        elif key == "ahead":
            self._ahead(name, command[2:])
        elif key == "pins" and name == "ZADD":
            self.pins.append(command[3].decode())
        elif key == "forks":
            self.forks |= {int(one): At.of(other.decode()) for one, other in _pairs(command[2:])}

    def _queue(self, name: str, queue: str, words: Command, changes: _Changes) -> None:
        if name == "ZADD":
            for score, member in _pairs(words):
                self._touch(int(member), changes)[queue] = float(score)
        elif name == "ZREM":
            for member in words:
                self._touch(int(member), changes).pop(queue, None)

    def _touch(self, index: int, changes: _Changes) -> dict[str, float]:
        places = self.places[index]
        changes.before.setdefault(index, next(iter(places), None))
        return places

    def _entry(self, name: str, index: int, words: Command, changes: _Changes) -> None:
        if name in ("DEL", "UNLINK"):
            self.states.pop(index, None)
        elif name in ("HSET", "HMSET"):
            values = dict(_pairs(words))
            if b"state" in values:
                self.states[index] = values[b"state"].decode()
            if b"fence" in values:
                changes.leased.add(index)

    def _meta(self, name: str, words: Command, changes: _Changes) -> None:
        if name in ("HSET", "HMSET"):
            fields = {key.decode(): value.decode("utf-8", "replace") for key, value in _pairs(words)}
            self.meta |= fields
            changes.meta |= fields
        elif name == "HINCRBY":
            key = words[0].decode()
            self.meta[key] = changes.meta[key] = str(int(self.meta.get(key, 0)) + int(words[1]))
        elif name == "HDEL":
            for key in words:
                self.meta.pop(key.decode(), None)

    def _drops(self, name: str, words: Command, changes: _Changes) -> None:
        if name in ("DEL", "UNLINK"):
            self.drops.clear()
            changes.recounted = True
        elif name in ("HSET", "HMSET"):
            self.drops |= {reason.decode(): int(count) for reason, count in _pairs(words)}
            changes.recounted = True
        elif name == "HINCRBY":
            reason = words[0].decode()
            self.drops[reason] = self.drops.get(reason, 0) + int(words[1])

    def _ahead(self, name: str, words: Command) -> None:
        if name in ("DEL", "UNLINK"):
            self.ahead.clear()
        elif name == "SADD":
            self.ahead |= {int(word) for word in words}
        elif name == "SREM":
            self.ahead -= {int(word) for word in words}

    # --- an ordinary transaction ------------------------------------------------------------------

    def _moved(self, changes: _Changes, was: At | None, issued: int) -> None:
        now, used, entered = self.version, set(), 0
        for index, before in changes.before.items():
            after = next(iter(self.places[index]), None)
            if after is None and before == "applied":
                self.committed[index] = self.applied_at[index][-1]
            elif after is None and before is not None:
                self.dropped.add(index)
                self.ever_dropped.add(index)
            elif before is None and after is not None:
                entered += 1
                self._entered(index)
            elif after == "applied" and before != "applied":
                used.add(index)
                if before != "taken":
                    self._say("twice", f"prompt {index} was applied although it was {before}, not taken")
            elif before == "applied" and after != "applied":
                self._say("twice", f"prompt {index} was applied and is {after} again, and no learner began anew")
            if before is not None and index in changes.leased:
                self.leased_again += 1
        if entered != int(self.meta.get("issued", 0)) - issued:
            self._say("balance", f"{entered} prompts were issued, {issued} became {self.meta.get('issued')}")
        if now is not None and now != was:
            self._published(now, was)
        if used:
            self._applied(used, now)

    def _entered(self, index: int) -> None:
        if index in self.committed:
            self._say("twice", f"prompt {index} was committed by step {self.committed[index]} and was issued again")
        elif index in self.dropped:
            self._say("twice", f"prompt {index} was dropped and was issued again")

    def _published(self, now: At, was: At | None) -> None:
        if was is None or now.lineage != was.lineage:
            self._say("backwards", f"the version went from {was} to {now}, and no learner began anew")
        elif now.step != was.step + 1:
            self._say("backwards", f"the version went from {was} to {now}")

    def _applied(self, used: set[int], now: At | None) -> None:
        if now is None:
            self._say("twice", f"prompts {sorted(used)[:5]} were applied before any version was published")
            return
        way = way_to(now, self.forks)
        for index in used:
            for earlier in self.applied_at[index]:
                if led_to(earlier, way, self.forks):
                    self._say("twice", f"prompt {index} was used by step {earlier} and again by step {now}")
            self.applied_at[index].append(now)
            if self.places[index].get("applied") != now.step:
                self._say("balance", f"prompt {index} says that step {self.places[index].get('applied')} used it")
        self.steps[now] = frozenset(used)

    # --- a learner begins, from a checkpoint ------------------------------------------------------

    def _reconciled(self, changes: _Changes, was: At | None) -> None:
        """The new lineage forks from the checkpoint: what led to it is committed, and only that."""
        now = self.version
        assert now is not None, "a transaction that reconciles sets lineage and step"
        if was is not None and now.lineage <= was.lineage:
            self._say("backwards", f"a learner that begins anew is given version {now} after {was}")
        if was is None and int(self.meta.get("issued", 0)):
            self._say("lost", f"the store was empty, and the checkpoint knows of {self.meta['issued']} prompts")
        way = way_to(now, self.forks)
        on_way = {i: [at for at in used if led_to(at, way, self.forks)] for i, used in self.applied_at.items()}
        self.committed = {index: steps[-1] for index, steps in on_way.items() if steps}
        there = {index for index, places in self.places.items() if places}
        for index in sorted(there & self.committed.keys()):
            self._say("twice", f"prompt {index} was used by step {self.committed[index]}, and is in the store again")
        for index in sorted(self.holds("taken", "applied")):
            self._say("balance", f"prompt {index} is held by a learner that is gone")
        for index, before in changes.before.items():
            if before in ("taken", "applied") and index in there:
                self.delivered_again += 1
        if changes.recounted:  # the checkpoint's view of what was dropped replaces the store's
            self.dropped = {*range(self.cursor), *self.ahead} - there - self.committed.keys()
            for index in sorted(self.dropped - self.ever_dropped):
                self._say("lost", f"prompt {index} counts as dropped after a fall back, and nobody has dropped it")
        else:
            gone = {index for index, before in changes.before.items() if before is not None and index not in there}
            for index in sorted(gone - self.committed.keys()):
                self._say("lost", f"prompt {index} was {changes.before[index]} and is gone after a new start")

    # --- at all times -----------------------------------------------------------------------------

    def _check_states(self, changes: _Changes) -> None:
        for index in changes.before:
            places = self.places[index]
            if len(places) > 1:
                self._say("balance", f"prompt {index} is in several states: {', '.join(places)}")
            said = self.states.get(index)
            if said != next(iter(places), None):
                self._say("balance", f"prompt {index} stands in {next(iter(places), 'no queue')} and says {said}")
            if not places:
                del self.places[index]

    def _check_counts(self) -> None:
        """What the server counts, against what was followed."""
        if self.version is None:
            return
        counted = int(self.meta.get("committed", 0)), sum(self.drops.values()), int(self.meta.get("issued", 0))
        there = len(self.committed), len(self.dropped), len(self.committed) + len(self.dropped) + len(self.places)
        if counted != there:
            self._say("balance", f"committed, dropped and issued are counted as {counted}, and are {there}")


def _pairs(words: Command) -> list[tuple[bytes, bytes]]:
    return list(zip(words[::2], words[1::2], strict=True))
