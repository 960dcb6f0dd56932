"""What each actor asks of Ray, and the environment it gets: derived once from the run file and the cluster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from penstock.deploy.cluster import actor_environment
from penstock.deploy.config import PlacementSection, RoleResources
from penstock.deploy.runfile import RunFile
from penstock.rollout.config import EngineSection
from penstock.services.contracts import PenstockError

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Placement:
    """Resources by role, for one cluster."""

    device: Device
    section: PlacementSection
    engine: EngineSection
    workers: int
    ranks: int
    scorers: int
    home: str | None = None
    """Ray's id of the one node on which everything must live; None where several may be used."""

    def options(self, role: Literal["rollout", "learner", "scorer"]) -> dict[str, Any]:
        """Options of a Ray actor of this role."""
        wanted: RoleResources = getattr(self.section, role)
        threads = {"rollout": self.engine.threads, "learner": self.section.learner_threads, "scorer": 1}[role]
        bound = {"scheduling_strategy": NodeAffinitySchedulingStrategy(self.home, soft=False)} if self.home else {}
        return bound | {
            "num_cpus": wanted.cpus,
            "num_gpus": self.gpus(role),
            "resources": dict(wanted.resources),
            "runtime_env": {"env_vars": actor_environment(threads=threads, device=self.device_of(role))},
        }

    def device_of(self, role: Literal["rollout", "learner", "scorer"]) -> Device:
        """cuda only for an actor that has a card of its own, or a share of one."""
        return "cuda" if self.gpus(role) > 0 else "cpu"

    def gpus(self, role: Literal["rollout", "learner", "scorer"]) -> float:
        """GPUs of one actor. Roles that share cards take halves, which Ray puts on the same card."""
        asked: float | None = getattr(self.section, role).gpus
        if self.device == "cpu":
            return 0.0
        if asked is not None:
            return asked
        if role == "scorer":
            return 0.0
        whole = 1.0 if role == "learner" else float(self.engine.tensor_parallel)
        return whole / 2 if self.section.colocate and whole == 1.0 else whole

    def demand(self) -> dict[str, float]:
        """What the whole run asks for, by the names that Ray gives to resources."""
        counts: dict[Literal["rollout", "learner", "scorer"], int] = {
            "rollout": self.workers,
            "learner": self.ranks,
            "scorer": self.scorers,
        }
        asked: defaultdict[str, float] = defaultdict(float)
        for role, count in counts.items():
            wanted: RoleResources = getattr(self.section, role)
            one = {"CPU": wanted.cpus, "GPU": self.gpus(role), **wanted.resources}
            for kind, amount in one.items():
                asked[kind] += amount * count
        return dict(asked)

    def lacking(self, there: Mapping[str, float], word: str = "the cluster has") -> str:
        """What the run asks for beyond what is `there`, for people; empty when there is enough."""
        return "; ".join(
            f"{wanted:g} {_many(kind)} are asked for, {word} {there.get(kind, 0):g}"
            for kind, wanted in self.demand().items()
            if wanted > there.get(kind, 0)
        )


def resources(home: str | None) -> Mapping[str, float]:
    """What the cluster has by Ray's count, or one node of it."""
    if home is None:
        return ray.cluster_resources()  # type: ignore[no-any-return]  # Ray has no types
    return next((node["Resources"] for node in ray.nodes() if node["NodeID"] == home and node["Alive"]), {})


def _many(kind: str) -> str:
    return f"{kind}s" if kind in ("CPU", "GPU") else f"of the custom resource {kind!r}"


def place(
    run_file: RunFile, *, workers: int, ranks: int, scorers: int, grows: bool = False, home: str | None = None
) -> Placement:
    """Decide the device and check that the cluster has what the run asks for. Raises PenstockError that says what
    is lacking; otherwise Ray would wait for it without a word. A cluster that `grows` is waited for: what finds no
    room there makes its autoscaler start a node. `home` is the one node that may be used, when it is only one."""
    section, there = run_file.placement, resources(home)
    device: Device
    device = ("cuda" if there.get("GPU", 0) >= 1 else "cpu") if section.device == "auto" else section.device
    placement = Placement(device, section, run_file.engine, workers, ranks, scorers, home)
    lacking = placement.lacking(there)
    if lacking and not grows:
        if home is not None and lacking != placement.lacking(ray.cluster_resources()):
            lacking += ". Nodes that have joined since the run began are not counted: it began on one alone, and its "
            lacking += "weights and its store are reached from there only; `penstock resume` takes them in"
        raise PenstockError(
            f"the cluster is too small: {lacking}. Lower rollout.workers, reward.scorers or learner.ranks, share cards "
            "with placement.colocate=true, or ask for less under placement.rollout, placement.learner and "
            "placement.scorer. If the cluster starts nodes by itself, say placement.grows=true"
        )
    return placement
