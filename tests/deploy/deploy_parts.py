"""Actors without processes, and what stands around them in a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.deploy import assemble, rollouts
from penstock.deploy.crews import Crew
from penstock.deploy.rollouts import RolloutActor
from penstock.deploy.scaling import Scaling
from penstock.services import models
from penstock.services.contracts import PenstockError


class Method:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def remote(self, *arguments):
        self.calls.append(arguments)


_WORDS = {
    "rollout": {"noun": "rollout worker", "least": 0, "why_least": "", "parting": "hands on what it holds"},
    "scorer": {"noun": "scorer", "least": 1, "why_least": "nobody would judge", "parting": "answers for what it has"},
}


def crew_of(count: int, role: str = "rollout") -> Crew:
    """Actors without processes, on a cluster with room for four, all of them running."""

    def start(name: str, log: Path, restarts: int) -> SimpleNamespace:
        return SimpleNamespace(ready=Method(), request_drain=Method(), run=Method(), use_scorers=Method())

    def require_room(wanted: int) -> str:
        if wanted > 4:
            raise PenstockError(f"the cluster is too small: {wanted} CPUs are asked for, the cluster has 4")
        return ""

    crew = Crew(
        role=role,
        start=start,
        log=lambda _: Path("none.log"),
        require_room=require_room,
        most=4096,
        last_words=lambda member: {"said": member.stats},
        **_WORDS[role],
    )
    for _ in range(count):
        crew.add().state = "running"
    return crew


def scaling_of(journal, workers: int = 0, scorers: int = 1) -> dict[str, Scaling]:
    """Of both roles."""
    return {"rollout": Scaling(crew_of(workers), journal), "scorer": Scaling(crew_of(scorers, "scorer"), journal)}


def names(workers) -> list[str]:
    return [worker.name for worker in workers]


STREAM = object()
"""The prompts of `rollout_actor`."""


def rollout_actor(monkeypatch: pytest.MonkeyPatch) -> tuple[RolloutActor, list[Any]]:
    """An actor without anything real, and what it exports."""
    exported: list[Any] = []
    monkeypatch.setattr(rollouts, "begin_life", lambda log: None)
    monkeypatch.setattr(rollouts, "export_actor", lambda export, role, name, stats: exported.append(stats))
    monkeypatch.setattr(models, "load_tokenizer", lambda model: None)
    monkeypatch.setattr(assemble, "build_generator", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(assemble, "build_stream", lambda *_: STREAM)
    route = SimpleNamespace(receiver=lambda tensor_parallel, learner: None)
    engine = SimpleNamespace(tensor_parallel=1)
    plan: Any = SimpleNamespace(model=None, route=route, engine=engine, export=None, data=None, seed=0)
    return RolloutActor("rollout-0", 0, Path("log"), plan, (0, {}), None), exported
