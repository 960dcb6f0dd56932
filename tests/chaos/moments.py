"""The moments at which a strike hurts most, and how to see from outside that one has come.

What takes milliseconds is seen in the raw store and on the disk, where it happens, and not in what the driver says of
it once a second.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import redis

from chaos.subject import Subject
from chaos.targets import Target
from penstock.services.control import Checkpoint, ScalableRole, Scale

ANY = "any"
"""A moment like any other."""


@dataclass(frozen=True)
class Moment:
    """Something that the parts do together."""

    name: str
    targets: tuple[Target, ...]
    """Whom to strike while it lasts."""
    watch: Callable[[Subject, Path, random.Random], Callable[[], str | None]]
    """Brings it about where it does not come by itself. The result is asked again and again: None while it has not
    come, else the name of the actor that it happens to, or an empty text."""


def _value(ask: Callable[[], object]) -> object:
    """None while the store is away."""
    with contextlib.suppress(redis.RedisError, OSError):
        return ask()
    return None


def _swap(subject: Subject, _: Path, __: random.Random) -> Callable[[], str | None]:
    """A worker pins the version that it fetches; a dead one's pin stays for a while."""
    client = subject.redis()

    def pins() -> set[str]:
        found = _value(lambda: client.zrange(subject.key("pins"), 0, -1)) if client is not None else None
        return {pin.decode() for pin in found} if isinstance(found, list) else set()

    before = pins()

    def seen() -> str | None:
        readers = [pin.split()[-1] for pin in pins() - before]
        return next((reader for reader in readers if reader.startswith("rollout-")), None)

    return seen


def _publication(subject: Subject, _: Path, __: random.Random) -> Callable[[], str | None]:
    return lambda: "learner-0" if any(subject.weights.glob(".*.writing")) else None


def _step(subject: Subject, _: Path, __: random.Random) -> Callable[[], str | None]:
    client = subject.redis()

    def seen() -> str | None:
        taken = _value(lambda: client.zcard(subject.key("taken"))) if client is not None else None
        return "learner-0" if taken else None

    return seen


def _checkpoint(subject: Subject, _: Path, __: random.Random) -> Callable[[], str | None]:
    subject.ask(Checkpoint())
    return lambda: "learner-0" if any(subject.checkpoints.glob(".step-*.writing")) else None


def _commit(subject: Subject, _: Path, __: random.Random) -> Callable[[], str | None]:
    """The checkpoint has its name, and the store has not heard of it."""
    client, before = subject.redis(), set(subject.checkpoints.glob("step-*"))
    subject.ask(Checkpoint())

    def seen() -> str | None:
        return "learner-0" if client is not None and set(subject.checkpoints.glob("step-*")) - before else None

    return seen


def _scoring(subject: Subject, judged: Path, _: random.Random) -> Callable[[], str | None]:
    """The judge leaves a file while it judges; one that was killed leaves it for good."""
    before = set(judged.glob("judging-*"))
    return lambda: "" if set(judged.glob("judging-*")) - before else None


def _scaled(subject: Subject, by: int, random: random.Random, kind: str) -> Callable[[], str | None]:
    """One more or one less, of a role; the strike comes a moment after it has begun to come or go."""
    role: ScalableRole = random.choice(("rollout", "scorer"))
    there = len([worker for worker in subject.workers(role) if worker["state"] != "leaving"])
    since = time.time() - 0.001
    if not subject.ask(Scale(role, max(1, there + by))):
        return lambda: None
    later = random.uniform(0, 4) if by > 0 else 0.0  # a process takes seconds to come, and milliseconds to go

    def seen() -> str | None:
        begun = [event for event in subject.events(kind, since) if time.time() >= event["time"] + later]
        return str(begun[-1]["name"]) if begun else None

    return seen


MOMENTS = {
    moment.name: moment
    for moment in (
        Moment("swap", ("worker", "store", "learner", "driver"), _swap),
        Moment("publication", ("learner", "store", "worker", "driver"), _publication),
        Moment("step", ("learner", "store", "driver", "worker"), _step),
        Moment("checkpoint", ("learner", "store", "driver"), _checkpoint),
        Moment("commit", ("learner", "store", "driver"), _commit),
        Moment("scoring", ("scorer", "worker", "store"), _scoring),
        Moment("join", ("worker", "scorer", "store", "driver"), lambda s, _, r: _scaled(s, 1, r, "joining")),
        Moment("drain", ("worker", "scorer", "store", "driver"), lambda s, _, r: _scaled(s, -1, r, "leaving")),
    )
}
START = "start"
"""While a driver starts the run again; it comes by itself, after the death of a driver or a learner."""


def for_target(target: Target) -> list[str]:
    """The moments at which it may be struck."""
    return [ANY, *(moment.name for moment in MOMENTS.values() if target in moment.targets)]
