"""Scales a run's rollout workers: gathers what the autoscaler looks at, and carries out what it says.

Whatever it does it asks for as a person would, so that it is an event and is refused like anybody else's wish. When
somebody else has changed the number it leaves it alone for a while.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

from penstock.deploy.autoscaler import Autoscaler, Load
from penstock.deploy.fleet import Member
from penstock.deploy.journal import Journal
from penstock.deploy.scaling import Scaling
from penstock.rollout.config import AutoscaleSection
from penstock.services.control import Answer, Asked, Scale

WHO = "autoscaler"


class Looks:
    """What the autoscaler is told. `clock` gives seconds."""

    def __init__(self, groups_per_step: int, joining: float, clock: Callable[[], float] = time.monotonic) -> None:
        """A worker counts when it has delivered a group, or has been there for `joining` seconds without one."""
        self._groups, self._joining, self._clock = groups_per_step, joining, clock
        self._at = self._ticked = clock()
        self._waited = self._open = self._told = 0.0
        self._steps = 0
        self._since: dict[str, float] = {}
        self._idle: dict[str, float] = {}

    def tick(self, waiting: bool) -> None:
        """Several times a second: whether the learner waits for groups."""
        now = self._clock()
        if waiting:
            self._open += now - self._ticked
        self._ticked = now

    def stepped(self, metrics: Mapping[str, float]) -> None:
        """A train step is done. What it says of its wait is exact, and takes the place of what was seen of it."""
        self._waited += metrics.get("time/wait", self._open)
        self._open = 0.0
        self._steps += 1

    def load(self, workers: Sequence[Member], wanted: int, stored: int, max_lag: int) -> Load:
        """What was seen since the last call. `stored`: groups in the store."""
        now = self._clock()
        seconds, self._at = now - self._at, now
        there = [worker for worker in workers if worker.state == "running" and not worker.leaving]
        self._since = {worker.name: self._since.get(worker.name, now) for worker in there}
        serving = [worker for worker in there if self._serves(worker, now)]
        waited, self._told = self._waited + self._open - self._told, self._waited + self._open
        steps, self._steps = self._steps, 0
        return Load(
            seconds=seconds,
            workers=len(serving),
            coming=max(0, wanted - len(serving)),
            waited=waited,
            idle=self._idle_share(serving, seconds),
            queue=stored / self._groups,
            max_lag=max_lag,
            steps=steps,
            places=(max_lag + 1) * self._groups,
        )

    def _serves(self, worker: Member, now: float) -> bool:
        return worker.delivered or now - self._since[worker.name] >= self._joining

    def _idle_share(self, serving: Sequence[Member], seconds: float) -> float:
        said = {worker.name: float(worker.stats.get("rollout/waiting_seconds", 0.0)) for worker in serving}
        # One that was started again counts from 0 again.
        new = [max(0.0, total - self._idle.get(name, total)) for name, total in said.items()]
        self._idle = said
        return min(1.0, sum(new) / (len(new) * seconds)) if new and seconds > 0 else 0.0


class Autoscaling:
    """Acts through `ask`, which is `Steering.carry_out`. Nothing here waits."""

    def __init__(
        self,
        rules: AutoscaleSection,
        groups_per_step: int,
        scaling: Scaling,
        ask: Callable[[Asked], Answer],
        journal: Journal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules, self._scaling, self._ask, self._journal = rules, scaling, ask, journal
        self._clock = clock
        self.looks = Looks(groups_per_step, rules.up_after, clock)
        self._scaler = Autoscaler(rules)
        self._asked = scaling.asked
        self._held_until = -math.inf

    def look(self, active: bool, stored: int, max_lag: int) -> None:
        """About once a second. `active`: the run trains and nobody has paused it or closed its gate."""
        load = self.looks.load(self._scaling.staying, self._scaling.wanted, stored, max_lag)
        if self._scaling.asked != self._asked:
            self._let_be()
        if not active or self._clock() < self._held_until:
            self._scaler.forget()
            return
        if self._held_until > -math.inf:
            self._held_until = -math.inf
            self._journal.event("autoscaling", "the autoscaler goes on")
        decision = self._scaler.look(load, self._scaling.wanted)
        if decision is None:
            return
        self._journal.event("autoscaling", decision.why, wanted=decision.count)
        asked = Asked(f"{WHO}-{uuid.uuid4().hex}", WHO, time.time(), Scale("rollout", decision.count))
        if not self._ask(asked).done:
            self._scaler.refused(decision.count)
        self._asked = self._scaling.asked

    def _let_be(self) -> None:
        """Somebody has changed the number, or a worker was given up."""
        hold, self._asked = self._rules.hold, self._scaling.asked
        self._held_until = math.inf if hold is None else self._clock() + hold
        how_long = "for the rest of the run" if hold is None else f"for {hold:g} s"
        what = (
            f"{self._scaling.wanted} rollout workers are wanted by somebody else; the autoscaler leaves them {how_long}"
        )
        self._journal.event("autoscaling", f"{what} (rollout.autoscale.hold)")
