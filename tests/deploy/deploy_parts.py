"""Actors without processes, and what stands around them in a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from penstock.deploy.fleet import Member
from penstock.services.contracts import PenstockError


class Method:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def remote(self, *arguments):
        self.calls.append(arguments)


class Parts:
    """Workers without processes, on a cluster with room for four."""

    def __init__(self, count: int) -> None:
        self.workers: list[Member] = []
        self.left: list[Member] = []
        self.made = 0
        for _ in range(count):
            self.add_worker().state = "running"

    def add_worker(self) -> Member:
        handle = SimpleNamespace(ready=Method(), request_drain=Method())
        member = Member(f"rollout-{self.made}", "rollout", Path("none.log"), start=lambda _: handle)
        self.made += 1
        member.launch()
        self.workers.append(member)
        return member

    def require_room(self, workers: int) -> None:
        if workers > 4:
            raise PenstockError(f"the cluster is too small: {workers} CPUs are asked for, the cluster has 4")


def names(workers) -> list[str]:
    return [worker.name for worker in workers]
