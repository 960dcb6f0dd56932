"""Learner ranks as Ray actors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from penstock.deploy.deaths import begin_life
from penstock.deploy.exporter import Export, export_actor
from penstock.deploy.fleet import wait_for
from penstock.deploy.memory import resident
from penstock.deploy.scorers import facts_of_process
from penstock.deploy.transport import Outlet, Route
from penstock.learner.algorithms.table import add_to_path
from penstock.services.ports import HeldPort
from penstock.services.store.connection import StoreAddress
from penstock.services.versions import Version

if TYPE_CHECKING:
    from penstock.learner.learner import LearnerPlan
    from penstock.learner.stages.tuner import SftPlan


@dataclass(frozen=True)
class StepLimits:
    """The limits that the loop itself must keep, because they are exact."""

    steps: int | None
    tokens: int | None

    def __call__(self, step: int, tokens: int) -> str:
        """Why training is over after `step` steps and `tokens` tokens; empty when it is not."""
        if self.steps is not None and step >= self.steps:
            return f"limits.steps: {self.steps} steps are done"
        if self.tokens is not None and tokens >= self.tokens:
            return f"limits.tokens: {tokens} tokens are trained on"
        return ""


class LearnerActor:
    """`LearnerRank` in a process of its own; `run` blocks in one thread, the rest is asked from others."""

    def __init__(self, name: str, log: Path, folder: str, export: Export | None) -> None:
        begin_life(log)
        add_to_path(Path(folder))  # before anything arrives that names a module of the user's own
        self.name = name
        self._rank: Any = None
        self._outlet: Any = None
        self._meeting: HeldPort | None = None
        export_actor(export, "learner", name, self._doing)

    def meeting_point(self) -> str:
        """`host:port` on this node where the ranks can find each other; asked of rank 0 only, and kept for them until
        this process ends."""
        host = ray.util.get_node_ip_address()
        self._meeting = HeldPort(host)
        return f"[{host}]:{self._meeting.number}" if ":" in host else f"{host}:{self._meeting.number}"

    def ready(self) -> dict[str, Any]:
        """Answers once the heavy libraries are there."""
        import penstock.learner.engine  # noqa: F401  DeepSpeed takes seconds to import; that is part of the start

        return facts_of_process()

    def prepare(
        self, rank: int, plan: LearnerPlan, meet_at: str, store: StoreAddress, route: Route, limits: StepLimits
    ) -> None:
        """Tell the rank what it is to do; `run` then does it. Only rank 0 meets the store and publishes."""
        from penstock.learner.learner import LearnerRank

        plan = replace(plan, meet_at=meet_at)
        if rank > 0:
            self._rank = LearnerRank(rank, plan)
            return
        sender = route.sender()
        self._outlet = Outlet(sender, route.deadline)
        # Audits read versions back, which takes files; that nothing else is asked for has been checked.
        receiver = route.receiver(0, lambda: None) if plan.audit.every and route.backend is None else None
        self._rank = LearnerRank(rank, plan, store.connect(), sender, limits, receiver)

    def weights_manifest(self, version: Version) -> Any:
        """For workers whose weights come straight from this card."""
        return self._outlet.manifest(version)

    def send_weights(self, version: Version, worker: Any, gpus: int) -> None:
        """Send `version` into the engine of the actor `worker`."""
        self._outlet.send(version, worker, gpus)

    def prepare_tuning(self, rank: int, plan: SftPlan) -> None:
        """The same for a rank of supervised fine-tuning."""
        from penstock.learner.stages.tuner import SftRank

        self._rank = SftRank(rank, plan)

    def run(self) -> str:
        """The rank's whole life; returns why it ended."""
        return str(self._rank.run())

    def stats(self) -> dict[str, Any]:
        """What the rank is doing, and its reports since the last call."""
        said = {} if self._rank is None else {"reports": self._rank.reports(), "spans": self._rank.spans()}
        return self._doing() | said | resident()

    def _doing(self) -> dict[str, Any]:
        if self._rank is None:
            return {"doing": "waiting to begin"}
        health = self._rank.health()
        return {"doing": health.doing, "version": health.version, "silent": health.silent}

    def request_stop(self, why: str) -> None:
        """End after this step, with a checkpoint and the model on disk."""
        self._rank.request_stop(why)

    def request_checkpoint(self) -> None:
        self._rank.request_checkpoint()

    def request_pause(self, paused: bool, number: int) -> None:
        """Begin no train step until it is asked for again with False."""
        self._rank.request_pause(paused, number)

    def request_turn(self, changes: dict[str, float], number: int) -> None:
        """Train with these coefficients from the next step on."""
        self._rank.request_turn(changes, number)

    def request_roll_back(self, step: int, lineage: int) -> None:
        """Go back to the newest checkpoint of at most `step`, while `lineage` is the one that is trained."""
        self._rank.request_roll_back(step, lineage)

    def observe(self, version: Version, metrics: dict[str, float]) -> None:
        """An evaluation's metrics, for keeping the best checkpoint."""
        self._rank.observe(version, metrics)


def start_rank(name: str, log: Path, options: dict[str, Any], folder: str, export: Export | None, _: int) -> Any:
    """A rank's handle; it is still starting. `folder` holds modules of the user's own algorithms."""
    return ray.remote(LearnerActor).options(max_concurrency=16, **options).remote(name, log, folder, export)


def prepare_ranks(
    handles: list[Any],
    plan: LearnerPlan,
    store: StoreAddress,
    route: Route,
    limits: StepLimits,
) -> list[Any]:
    """Give every rank its part, once rank 0 has said where to meet; returns the answers to wait for."""
    meet_at = handles[0].meeting_point.remote()
    return [handle.prepare.remote(rank, plan, meet_at, store, route, limits) for rank, handle in enumerate(handles)]


def prepare_tuning(handles: list[Any], plan: SftPlan, deadline: float) -> None:
    """The same for supervised fine-tuning, which needs no store."""

    def told(what: str, answers: dict[str, Any]) -> list[Any]:
        return wait_for(answers, what, deadline, "deadlines.start", lambda: None)

    (meet_at,) = told("to say where the ranks meet", {"rank 0": handles[0].meeting_point.remote()})
    plan = replace(plan, meet_at=meet_at)
    asked = {f"rank {rank}": handle.prepare_tuning.remote(rank, plan) for rank, handle in enumerate(handles)}
    told("to be told what to learn", asked)
