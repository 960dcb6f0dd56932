"""What becomes of actors that die, fail or fall silent while a run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from penstock.deploy.fleet import ActorLost, Member
from penstock.deploy.journal import Journal
from penstock.deploy.parts import Parts
from penstock.deploy.recovery import Recovery
from penstock.deploy.runfile import RunFile
from penstock.deploy.scaling import Scaling
from penstock.deploy.silence import end_the_silent


class Mending:
    """Replaces workers, scorers and the learner; what cannot be replaced ends the run. Nothing here waits, but for the
    last words of what has fallen silent."""

    def __init__(
        self,
        parts: Parts,
        run_file: RunFile,
        journal: Journal,
        workers: Scaling,
        scorers: Scaling,
        anew: Callable[[], object] = lambda: None,
        lapse: Callable[[Member], object] = lambda _: None,
    ) -> None:
        """`anew` is called when a fresh learner is about to run, which knows nothing of what was asked of the one
        before; `lapse` for a rollout worker whose process is gone, with what it held."""
        self._parts, self._run_file, self._journal = parts, run_file, journal
        self._workers, self._scorers = workers, scorers
        self.restarts: dict[str, int] = {}
        """By name, of whoever was started again."""
        self.learner = Recovery(parts, run_file, journal, self.restarts)
        self._anew, self._lapse = anew, lapse

    def store(self) -> None:
        """Start the private store again when it has died."""
        cause = self._parts.host.revive()
        if cause is not None:
            self.restarts["store"] = self._parts.host.restarts
            self._journal.tell("restarted", "the private store died and was started again", name="store", cause=cause)

    def look(self, started: bool, workers: Iterable[Member]) -> None:
        """At the learner, the scorers and those `workers` that there may be news of. Raises ActorLost when the run
        cannot go on. Until the learner has `started` nobody works."""
        if self.learner.look(started):
            self._anew()
            for member in self._parts.learners:
                member.run()
        for member in self._scorers.staying:
            self._scorer(member)
        self._parts.in_use.look()
        for member in workers:
            if not member.leaving:
                self._worker(member, started)

    def _worker(self, member: Member, started: bool) -> None:
        """An engine that failed is replaced, never trusted."""
        if member.state != "dead":
            if member.state == "ready" and started:
                member.run()
                self._parts.tell_bound(member)
                what = f"{member.name} is back" if member.restarts else f"{member.name} begins to generate"
                self._journal.tell("restarted" if member.restarts else "joined", what, name=member.name)
            self._greet(member)
            return
        self._journal.tell("died", member.cause, name=member.name)
        self._lapse(member)
        most = self._run_file.rollout.max_restarts
        if member.restarts >= most:
            if not self._workers.may_give_up(member):
                again = f"{member.name} was started again {most} times (rollout.max_restarts)"
                raise ActorLost(f"{member.cause}\n{again}")
            self._workers.give_up(member)
            return
        member.launch()
        self.restarts[member.name] = member.restarts
        self._journal.tell("restarted", f"{member.name} is started again", name=member.name)

    def _greet(self, member: Member) -> None:
        """Its first group is there: only now a worker that joined is of use."""
        if not member.delivered and member.stats.get("rollout/groups_put"):
            member.delivered, took = True, member.age
            what = f"{member.name} has handed in its first group, {took:.1f} s after it was started"
            self._journal.event("delivered", what, name=member.name, seconds=round(took, 2))

    def _scorer(self, member: Member) -> None:
        """Ray starts scorers again, until it has done so too often; meanwhile others score their groups."""
        if member.state == "ready":
            member.run()
            self._journal.tell("joined", f"{member.name} begins to score", name=member.name)
        if member.state == "dead":
            self._journal.tell("died", member.cause, name=member.name)
            if not self._scorers.may_give_up(member):
                raise ActorLost(f"{member.cause}\n  {self._journal.how_to_go_on}")
            self._scorers.give_up(member)
        known = member.facts.get("pid")
        if (pid := int(member.stats.get("process/pid", known or 0))) != (known or 0):
            if not member.mourned:
                self._journal.tell("died", member.cause or f"{member.name} died", name=member.name)
            member.reborn(pid)
            self.restarts[member.name] = member.restarts
            self._journal.tell("restarted", f"{member.name} was started again by Ray", name=member.name)

    def silence(self) -> None:
        """A process that lives but does not move any more. Engines may compile for long, so the limit is generous."""
        loading = bool(self.learner.stage)  # what is being loaded again has the deadline of a start
        watched = [member for member in self._parts.members if not (loading and member.role == "learner")]
        for member in end_the_silent(watched, self._run_file.deadlines.silence):
            if member.role == "scorer":  # Ray starts it again by itself
                self._journal.tell("died", member.cause, name=member.name)
