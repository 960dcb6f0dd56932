"""The moments at which a strike hurts most, and how to see from outside that one has come.

What takes milliseconds is seen in the raw store and on the disk, where it happens, and not in what the driver says of
it once a second.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chaos.shadow import Shadow
from chaos.subject import Subject
from chaos.targets import Target
from penstock.services.control import Checkpoint, ScalableRole, Scale

ANY = "any"
"""A moment like any other."""


@dataclass(frozen=True)
class Scene:
    """What a moment is brought about with, and seen by."""

    subject: Subject
    shadow: Shadow
    """The store as it is now; whoever looks again and again keeps it so."""
    judged: Path
    """Where the judge leaves its marks."""
    random: random.Random


Seen = Callable[[], str | None]
"""None while the moment has not come, else the name of the actor that it happens to, or an empty text."""


@dataclass(frozen=True)
class Moment:
    """Something that the parts do together."""

    name: str
    targets: tuple[Target, ...]
    """Whom to strike while it lasts."""
    watch: Callable[[Scene], Seen]
    """Brings it about where it does not come by itself; the result is asked again and again."""


def _swap(scene: Scene) -> Seen:
    """A worker pins the version that it fetches."""
    before = len(scene.shadow.pins)

    def seen() -> str | None:
        readers = [pin.split()[-1] for pin in scene.shadow.pins[before:]]
        return next((reader for reader in readers if reader.startswith("rollout-")), None)

    return seen


def _publication(scene: Scene) -> Seen:
    return lambda: "learner-0" if any(scene.subject.weights.glob(".*.writing")) else None


def _step(scene: Scene) -> Seen:
    return lambda: "learner-0" if scene.shadow.holds("taken") else None


def _checkpoint(scene: Scene) -> Seen:
    scene.subject.ask(Checkpoint())
    return lambda: "learner-0" if any(scene.subject.checkpoints.glob(".step-*.writing")) else None


def _commit(scene: Scene) -> Seen:
    """The checkpoint has its name, and the store has not heard of it, or has this very moment."""
    folder, before = scene.subject.checkpoints, set(scene.subject.checkpoints.glob("step-*"))
    scene.subject.ask(Checkpoint())
    return lambda: "learner-0" if set(folder.glob("step-*")) - before else None


def _scoring(scene: Scene) -> Seen:
    """The judge leaves a file while it judges; one that was killed leaves it for good."""
    before = set(scene.judged.glob("judging-*"))
    return lambda: "" if set(scene.judged.glob("judging-*")) - before else None


def _scaled(scene: Scene, by: int, kind: str) -> Seen:
    """One more or one less, of a role; the strike comes a moment after it has begun to come or go."""
    role: ScalableRole = scene.random.choice(("rollout", "scorer"))
    there = len([worker for worker in scene.subject.workers(role) if worker["state"] != "leaving"])
    since = time.time() - 0.001
    if not scene.subject.ask(Scale(role, max(1, there + by))):
        return lambda: None
    later = scene.random.uniform(0, 4) if by > 0 else 0.0  # a process takes seconds to come, and milliseconds to go

    def seen() -> str | None:
        begun = [event for event in scene.subject.events(kind, since) if time.time() >= event["time"] + later]
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
        Moment("join", ("worker", "scorer", "store", "driver"), lambda scene: _scaled(scene, 1, "joining")),
        Moment("drain", ("worker", "scorer", "store", "driver"), lambda scene: _scaled(scene, -1, "leaving")),
    )
}
START, END = "start", "end"
"""While a driver starts the run again, after one has died; while the run comes to its end."""


def for_target(target: Target) -> list[str]:
    """The moments at which it may be struck."""
    return [ANY, *(moment.name for moment in MOMENTS.values() if target in moment.targets)]
