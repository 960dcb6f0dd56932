"""Who can be struck, and which process that is."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, get_args

from chaos.subject import Subject

Target = Literal["worker", "scorer", "learner", "store", "driver", "page"]
TARGETS: tuple[Target, ...] = get_args(Target)
WEIGHTS: dict[Target, float] = {"worker": 6, "scorer": 5, "store": 6, "learner": 2, "driver": 1, "page": 1}
"""How often each is chosen. What ends the whole run, and so takes the longest to mend, is chosen less often."""
_ROLES = {"worker": "rollout", "scorer": "scorer", "learner": "learner"}


@dataclass(frozen=True)
class Victim:
    """One process."""

    target: Target
    name: str
    pid: int


def living(subject: Subject, target: Target) -> list[Victim]:
    """All that could be struck now."""
    if target == "driver":
        return [Victim(target, "driver", subject.driver.pid)] if subject.driver.poll() is None else []
    if target == "page":
        page = subject.page()
        return [Victim(target, "page", page)] if page is not None else []
    if target == "store":
        facts = subject.store()
        return [Victim(target, "store", facts["pid"])] if facts is not None and subject.lives(facts["pid"]) else []
    names = [path.stem for path in sorted((subject.path / "logs").glob(f"{_ROLES[target]}-*.log"))]
    pids = {name: subject.born(name) for name in names}
    return [Victim(target, name, pid) for name, pid in pids.items() if pid is not None and subject.lives(pid)]


def chosen(subject: Subject, target: Target, name: str, random: random.Random) -> Victim | None:
    """One of them; the one called `name` where it is there. None where nobody is."""
    there = living(subject, target)
    called = [victim for victim in there if victim.name == name]
    return random.choice(called or there) if there else None
