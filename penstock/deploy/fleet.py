"""The actors of a run as their supervisor sees them: starting, ready, dead; what they said last."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ray
import ray.exceptions

from penstock.deploy.deaths import Life, explain
from penstock.deploy.view import WorkerView
from penstock.services.contracts import DeadlinePassed, PenstockError
from penstock.services.lanes import Span

Role = Literal["rollout", "learner", "scorer"]
ATTEMPTS = 3
"""How often an actor is started, at most, while a run starts."""


class ActorLost(PenstockError):
    """An actor died and the run cannot go on without it; the text says why it died."""


@dataclass
class Member:
    """One actor and what is known of it. Nothing here waits: calls are sent and answers collected later."""

    name: str
    role: Role
    log: Path
    start: Callable[[int], Any]
    """Starts the actor and returns its handle; is told how often it was started before."""
    handle: Any = None
    state: Literal["starting", "ready", "running", "ended", "dead"] = "dead"
    restarts: int = -1
    facts: dict[str, Any] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    """What the actor said of itself last."""
    past: list[dict[str, Any]] = field(default_factory=list)
    """What it said last in each of its earlier lives."""
    inbox: list[dict[str, Any]] = field(default_factory=list)
    """Reports that nobody has read yet, oldest first."""
    spans: list[Span] = field(default_factory=list)
    """What it did, as far as that is not written down yet."""
    cause: str = ""
    """Why it died, when it did."""
    raised: BaseException | None = None
    """What it raised, when that is how it died."""
    gone: bool = False
    """It died because its process is gone, and raised nothing."""
    added: bool = False
    """It joined while the run went on, which goes on without it when it fails for good."""
    delivered: bool = False
    """It has handed in a group since it was started last."""
    leaving: bool = False
    """It was asked to leave the run for good; nobody starts it again."""
    away: bool = False
    """A scorer that did not answer: Ray is starting it again."""
    mourned: bool = False
    """Of a scorer that is away it has been told why."""
    mute: bool = False
    """It died because its process did not answer, and not because its loop stood still, perhaps waiting for another."""
    peak_rss: int = 0
    """Largest resident memory of any of its processes so far, bytes."""
    result: Any = None
    pace: float = 0.0
    """Tokens per second, where the actor does not say so itself."""
    heard: float = 0.0
    """When it was last heard of."""
    _since: float = 0.0
    _life: Life = field(default_factory=Life)
    _ready: Any = None
    _running: Any = None
    _asked: Any = None
    _viewed: tuple[object, WorkerView] | None = None

    def launch(self) -> None:
        """Start the actor; returns at once. A process that is left of an earlier start is ended."""
        if self.handle is not None:
            ray.kill(self.handle, no_restart=True)
            self.past.append(self.stats)
            self.stats = {}
        self._life = Life.begins()
        self.restarts += 1
        self.handle = self.start(self.restarts)
        self.state, self.cause, self.result, self._since = "starting", "", None, time.monotonic()
        self.delivered, self.raised, self.gone, self.mute = False, None, False, False
        self.facts = {}
        self._ready, self._running, self._asked = self.handle.ready.remote(), None, None

    def run(self) -> None:
        """Let it begin its loop; a scorer has none, and answers whenever it is asked."""
        self.heard = time.monotonic()
        if self.role != "scorer":
            self._running = self.handle.run.remote()
        self.state = "running"

    @property
    def awaited(self) -> list[Any]:
        """The answers that `poll` looks for."""
        if self.state in ("dead", "ended"):
            return []
        expected = (self._ready,) if self.state == "starting" else (self._running, self._asked)
        return [answer for answer in expected if answer is not None]

    @property
    def asked(self) -> bool:
        """It has been asked how it is, and has not answered yet."""
        return self._asked is not None

    def poll(self, start_deadline: float, arrived: Callable[[Any], bool] | None = None, ask: bool = True) -> None:
        """Collect what has arrived, notice a death, and `ask` for the next stats. `arrived` says of an awaited answer
        whether it is there; by default Ray is asked.

        Raises DeadlinePassed when an actor that the run began with takes too long to start: a starting engine is not a
        dead one, but it must not start for ever.
        """
        if self.state in ("dead", "ended"):
            return
        try:
            if self.state == "starting":
                self._await_ready(start_deadline, arrived or _done)
            else:
                self._collect(arrived or _done, ask)
        except ray.exceptions.RayError as error:
            self.state = "dead"
            self.cause = explain(self.name, error, self.log, self._known_life())
            self.raised = error.cause if isinstance(error, ray.exceptions.RayTaskError) else None
            self.gone = isinstance(error, ray.exceptions.RayActorError) and not error.actor_init_failed

    def _await_ready(self, deadline: float, arrived: Callable[[Any], bool]) -> None:
        if arrived(self._ready):
            self.facts = ray.get(self._ready)
            self.state, self.heard = "ready", time.monotonic()
        elif time.monotonic() - self._since > deadline:
            late = (
                f"waited {deadline:.0f} s (deadlines.start) for {self.name} to start; it has not answered: it is still "
                f"loading, or no node has room for it (`ray status` says). Its log is {self.log}"
            )
            if self.restarts == 0 and not self.added:
                raise DeadlinePassed(late)
            self.state, self.cause = "dead", late  # a replacement that is late is one more death, not the run's end

    def _collect(self, arrived: Callable[[Any], bool], ask: bool) -> None:
        if self._running is not None and arrived(self._running):
            self.result = ray.get(self._running)
            self.state = "ended"
            if self.role == "rollout":
                self._hear(self.result)  # nothing that was asked before it ended can be newer
                return
        if self._asked is not None and arrived(self._asked):
            try:
                self._hear(ray.get(self._asked))
            except ray.exceptions.ActorUnavailableError as error:
                if self.role != "scorer":  # only scorers are started again by Ray itself
                    raise
                if not self.away:
                    self.away, self.cause = True, explain(self.name, error, self.log, self._known_life())
            self._asked = None
        if self._asked is None and ask:
            self._asked = self.handle.stats.remote()

    def last_words(self, deadline: float) -> str:
        """Hear once more from an actor whose loop has ended, all of whose work is saved; returns why it has not told
        all, empty when it has."""
        asked, self._asked = self._asked, None
        ends = time.monotonic() + deadline
        try:
            for answer in filter(None, (asked, self.handle.stats.remote())):
                self._hear(ray.get(answer, timeout=max(0.0, ends - time.monotonic())))
        except ray.exceptions.GetTimeoutError:
            waited = f"waited {deadline:g} s (deadlines.drain) for the last report of {self.name}"
            return f"{waited}, whose work is done; it has not told of all its last steps"
        except ray.exceptions.ActorDiedError:
            return f"{self.name} was killed after its work was done, before it had told of all its last steps"
        except ray.exceptions.RayError as error:
            return f"{self.name}, whose work is done, has not told of all its last steps: {error}"
        return ""

    def _hear(self, stats: dict[str, Any]) -> None:
        self.inbox.extend(stats.pop("reports", []))
        self.spans.extend(stats.pop("spans", []))
        self.stats, self.heard, self.away = stats, time.monotonic(), False
        self.peak_rss = max(self.peak_rss, int(stats.get("process/peak_rss", 0)))

    @property
    def age(self) -> float:
        """Seconds since it was started last."""
        return time.monotonic() - self._since

    @property
    def silent(self) -> float:
        """Seconds since its loop moved, or since the process was heard of at all, whichever is longer."""
        return max(float(self.stats.get("silent", 0.0)), time.monotonic() - self.heard)

    def excuse(self, seconds: float) -> None:
        """So long nobody could have heard of it: that counts neither as silence nor as time to start in."""
        self.heard += seconds
        self._since += seconds

    def read_inbox(self) -> list[dict[str, Any]]:
        """The reports since the last call."""
        read, self.inbox = self.inbox, []
        return read

    def take_spans(self) -> list[Span]:
        """What it did since the last call."""
        taken, self.spans = self.spans, []
        return taken

    def leave(self) -> None:
        """Ask it to part with what it holds and end; one that holds nothing yet ends at once. A scorer needs no asking:
        nobody gives it anything any more, and it is ended when it has answered for what it had."""
        self.leaving = True
        if self.state != "running":
            self.kill()
        elif self.role == "rollout":
            self.handle.request_drain.remote()

    def _known_life(self) -> Life:
        return replace(self._life, pid=self.facts.get("pid"), node=self.facts.get("node"))

    def reborn(self, pid: int) -> None:
        """A scorer that Ray has started again lives in this process now."""
        self.facts["pid"], self.restarts, self._life = pid, self.restarts + 1, Life.begins()
        self.cause, self.mourned = "", False

    def end_silent(self, answers: bool) -> None:
        """End a process that hangs, as a whole or in its loop though it `answers`. `cause` says so already."""
        if self.role == "scorer":
            self.away, self.mourned, self.heard = True, True, time.monotonic()
            ray.kill(self.handle, no_restart=False)
            return
        self.kill()
        self.state, self.mute = "dead", not answers

    def kill(self) -> None:
        """End the process at once."""
        if self.handle is not None:
            ray.kill(self.handle, no_restart=True)
        if self.state != "dead":
            self.state = "ended"

    def view(self) -> WorkerView:
        """For people; made anew when there is something new to tell."""
        told = (self.state, self.cause, self.leaving, self.restarts, self.heard, self.pace)
        if self._viewed is None or self._viewed[0] != told:
            self._viewed = told, self._view()
        return self._viewed[1]

    def _view(self) -> WorkerView:
        state = f"dead: {self.cause.splitlines()[0]}" if self.state == "dead" and self.cause else self.state
        if self.state == "running":
            state = "leaving" if self.leaving else str(self.stats.get("doing", "running"))
        return WorkerView(
            name=self.name,
            role=self.role,
            state=state,
            pid=self.facts.get("pid"),
            node=str(self.facts.get("node", "")),
            version=str(self.stats.get("version", "")),
            in_flight=int(self.stats.get("rollout/in_flight", 0)),
            tokens_per_second=float(self.stats.get(f"{self.role}/tokens_per_second", self.pace)),
            restarts=max(0, self.restarts),
            tokens_in_flight=int(self.stats.get("rollout/tokens_in_flight", 0)),
        )


def wait_for(
    answers: Mapping[str, Any], what: str, deadline: float, key: str, meanwhile: Callable[[], object]
) -> list[Any]:
    """The answers of actors, by name, to `what` they were asked. Raises DeadlinePassed with those that are missing,
    ActorLost with what one of them raised, and RayActorError when one is gone."""
    began, missing, heard = time.monotonic(), dict(answers), {}
    while missing:
        there, _ = ray.wait(list(missing.values()), num_returns=len(missing), timeout=0.2)
        for name in [name for name, answer in missing.items() if answer in there]:
            try:
                heard[name] = ray.get(missing.pop(name))
            except ray.exceptions.RayTaskError as error:
                raise ActorLost(f"{name} failed {what}: {error.cause or error}") from error
        meanwhile()
        if missing and time.monotonic() - began > deadline:
            raise DeadlinePassed(f"waited {deadline:.0f} s ({key}) for {', '.join(missing)} {what}")
    return [heard[name] for name in answers]


def _done(reference: Any) -> bool:
    """True when the answer, or an error in its place, is there."""
    ready, _ = ray.wait([reference], timeout=0)
    return bool(ready)


def wait_until_ready(
    members: list[Member],
    deadline: float,
    meanwhile: Callable[[], None],
    again: Callable[[Member], object] = lambda _: None,
    pause: float = 0.2,
) -> None:
    """Until all are ready. One whose process is gone is started again, and `again` told, up to ATTEMPTS times in all.

    Raises ActorLost with the cause when one fails by itself, which it would again, or dies more often, DeadlinePassed
    when one takes too long."""
    while any(member.state in ("starting", "dead") for member in members):
        for member in members:
            member.poll(deadline)
            if member.state == "dead":
                if not member.gone or member.restarts + 1 >= ATTEMPTS:
                    raise ActorLost(member.cause)
                again(member)
                member.launch()
        meanwhile()
        time.sleep(pause)
