"""The rollout worker: reserves prompts, generates, has the answers scored, hands whole groups to the store.

It waits for nobody but the gate (a reservation) and, briefly, for a weight swap. Everything it holds is leased:
when it dies, others play its groups; when it is drained, they go on from where it stopped.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from penstock.rollout.evaluation import EvaluationJob, EvaluationReport
from penstock.rollout.evaluator import Evaluator
from penstock.rollout.groups import Groups, Rules
from penstock.rollout.leases import Leases, holder
from penstock.rollout.meter import Meter
from penstock.rollout.patience import patiently
from penstock.services.contracts import DeadlinePassed, Generator, PenstockError, Scorer
from penstock.services.lanes import Lane, Span
from penstock.services.replay import ReplayStore
from penstock.services.staleness import Forks
from penstock.services.trajectory import Prompt, Sampling
from penstock.services.versions import FIRST, Version
from penstock.services.weights.files import WeightsMissing

__all__ = ["RolloutWorker", "Rules"]

T = TypeVar("T")

LOOK = 0.25
"""Seconds between looks at which version is published; an answer about prompts says it, too."""
RETRY = (0.01, 1.0)
"""Seconds between questions at a closed gate: at first, and at most."""
CALM = (20, 0.25)
"""A question at a closed gate is followed by a pause at least so many times as long as its answer took, up to so many
seconds: what many workers ask of a busy store becomes less."""
SLOWER = 1.1
"""Every pause at a closed gate is so much longer than the one before: a tenth of what was waited already, so that an
opening is seen soon, and whoever waits for long asks seldom."""
REST = 0.2
"""Longest rest of a worker with nothing to generate whose groups are being scored; scores, jobs and a drain wake it."""
LISTEN = 0.25
"""Longest that a worker with nothing in hand listens for the gate's opening, and so the longest that a job or a drain
waits for it then; a second where the store does not answer."""


class Stream(Protocol):
    """Index → prompt; see `stream.PromptStream`."""

    def __getitem__(self, index: int, /) -> Prompt: ...


class RolloutWorker:
    """Owns its generator while `run` runs; `request_drain`, `evaluate` and `stats` may be called by any thread."""

    def __init__(
        self,
        name: str,
        store: ReplayStore,
        generator: Generator,
        scorer: Scorer,
        stream: Stream,
        sampling: Sampling,
        rules: Rules,
        life: int = 0,
    ) -> None:
        """`life` is how often a worker of this name was started before."""
        self.name = name
        self._holder = holder(name, life)
        self._store = store
        self._generator = generator
        self._scorer = scorer
        self._stream = stream
        self._rules = rules
        self._meter = Meter()
        self._leases = Leases(store, self._holder, rules.lease)
        self._groups = Groups(store, generator, sampling, rules, self._leases, self._meter, self._alive)
        self._evaluator = Evaluator(generator, scorer, rules.evaluation_slots)
        self._forks: Forks = {}
        self._published = FIRST
        self._pinned: Version | None = None
        self._looked = self._ask_at = 0.0
        self._backoff = RETRY[0]
        self._listens = False
        self._requests = 0
        self._unique = uuid.uuid4().hex[:12]  # request ids of a restarted worker must not repeat its old ones
        self._draining = threading.Event()
        self._wake = threading.Event()
        self._lane = Lane()
        self._tokens, self._counted = 0, 0.0
        self._closed, self._serving, self._phase, self._beat = "", "", "starting", time.monotonic()

    # --- for other threads ------------------------------------------------------------------------

    def request_drain(self) -> None:
        """Hand everything back and let `run` return, within an engine step."""
        self._draining.set()
        self._wake.set()

    def set_max_lag(self, bound: int) -> None:
        """Judge by another bound what has become too old, from the next swap on."""
        self._groups.max_lag = bound

    def evaluate(self, job: EvaluationJob) -> Future[EvaluationReport]:
        """Measure a version beside training. The future raises WeightsMissing when that version cannot be had, and
        DeadlinePassed when the measurement took too long."""
        result = self._evaluator.ask(job)
        self._wake.set()
        return result

    def stats(self) -> dict[str, float | str]:
        """Metrics by name, and what a display wants: phase, version in use, why the gate is closed, seconds
        since the loop's last sign of life; and for whoever does not ask after every swap the largest gap of all."""
        return {
            **self._meter.read(),
            "rollout/groups_in_hand": float(len(self._groups)),
            "rollout/in_flight": float(self._groups.generating),
            "rollout/tokens_sampled": float(self._generator.sampled),
            "rollout/tokens_in_flight": float(self._tokens),
            "phase": self._phase,
            "version": self._serving,
            "published": str(self._published),
            "closed": self._closed,
            "silent": time.monotonic() - self._beat,
            "largest_gap": self._meter.largest_gap[0],
            "largest_gap_at": self._meter.largest_gap[1],
        }

    def spans(self) -> list[Span]:
        """What it did since the last call."""
        return self._lane.take()

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the worker is drained or the run ends. Raises what makes it unable to go on, after handing back
        what it holds: then at most the tokens of one engine step are lost."""
        with self._leases:
            try:
                self._get_first_weights()
                while not self._draining.is_set():
                    self._groups.forget_lost()
                    self._swap_if_behind()
                    self._evaluator.advance(self._swap)
                    self._reserve()
                    self._generate()
                    self._groups.score(self._scorer, self._wake.set)
                    self._groups.put(self._published, self._forks)
                self._in_phase("draining")
                self._groups.put(self._published, self._forks)
                self._groups.hand_back()
            except BaseException:
                # The cause is what counts; leases that cannot be handed back now end by themselves.
                with contextlib.suppress(PenstockError):
                    self._groups.hand_back()
                raise
            finally:
                self._in_phase("ended")
                self._evaluator.close(f"rollout worker {self.name} has ended")

    def _get_first_weights(self) -> None:
        self._in_phase("waiting for weights")
        began = time.monotonic()
        while not self._draining.is_set():
            try:
                self._saw(self._ask("published", self._store.published))
                return self._swap(self._published)
            except WeightsMissing as error:
                waited = time.monotonic() - began
                if waited > self._rules.weights_deadline:
                    raise DeadlinePassed(
                        f"{self.name} has waited {waited:.0f} s for the learner's first weights: {error}"
                    ) from error
                self._rest()

    def _swap_if_behind(self) -> None:
        if time.monotonic() - self._looked >= LOOK:
            self._saw(self._ask("published", self._store.published))
        if self._published == self._generator.version or self._evaluator.busy:
            return
        try:
            if self._generator.in_flight and not self._prepared(self._published):
                return
            self._swap(self._published)
        except WeightsMissing:
            missing = self._published
            self._saw(self._ask("published", self._store.published))
            if self._published == missing:
                raise  # otherwise it was replaced by a newer one before it could be pinned

    def _prepared(self, version: Version) -> bool:
        """Whether its checksums have been verified, which goes on beside the generation; until then it is pinned."""
        if self._pinned != version:
            self._unpin()
            self._pin(version)
        return self._generator.prepared(version)

    def _pin(self, version: Version) -> None:
        self._ask("pin", partial(self._store.pin, version, self.name, self._rules.weights_deadline))
        self._pinned = version

    def _unpin(self) -> None:
        pinned, self._pinned = self._pinned, None
        if pinned is not None:
            self._ask("unpin", partial(self._store.unpin, pinned, self.name))

    def _swap(self, version: Version) -> None:
        """Bring the generator to `version`, pinned while it is fetched. Raises WeightsMissing, WeightsError."""
        self._in_phase("swapping weights")
        if self._pinned != version:
            self._unpin()
            self._pin(version)
        try:
            self._meter.swapped(self._generator.swap(version))
        finally:
            self._unpin()
        self._serving, self._ask_at = str(version), 0.0  # the gate is judged by the version
        self._groups.end_outlived(self._published, self._forks)

    def _saw(self, published: Version) -> None:
        """A version that the learner has published; a new lineage comes with a new tree of versions."""
        self._looked = time.monotonic()
        if published.lineage != 0 and published.lineage not in self._forks:
            self._forks = self._ask("forks", self._store.forks)
        self._published = published

    def _reserve(self) -> None:
        free = self._rules.max_groups - len(self._groups)
        if free <= 0 or time.monotonic() < self._ask_at:
            return
        self._requests += 1
        request, lease = f"{self._holder}-{self._unique}-{self._requests}", self._rules.lease
        version, began = self._generator.version, time.monotonic()
        waits = not len(self._groups)
        reply = self._ask("reserve", lambda: self._store.reserve(self._holder, version, free, lease, request, waits))
        took = time.monotonic() - began
        self._listens = waits and not reply.tickets
        self._saw(reply.published)
        self._closed = reply.closed
        for ticket in reply.tickets:
            self._groups.begin(ticket, self._stream[ticket.index], self._published, self._forks)
        if reply.closed == "draining":
            self.request_drain()
        self._backoff = RETRY[0] if reply.tickets else min(SLOWER * self._backoff, RETRY[1])
        pause = max(self._backoff, min(CALM[0] * took, CALM[1]))
        self._ask_at = time.monotonic() + pause if len(reply.tickets) < free else 0.0

    def _generate(self) -> None:
        done = self._generator.step()
        for key, completion in done:
            if not self._evaluator.absorb(key, completion):
                self._groups.absorb(key, completion)
        self._count_tokens()
        if self._generator.in_flight:
            self._in_phase("generating")
        elif not done:
            self._in_phase("waiting for scores" if len(self._groups) else f"waiting: {self._closed or 'prompts'}")
            self._rest()

    def _count_tokens(self) -> None:
        """Of the answers that are being generated; for people, so now and then is enough."""
        now = time.monotonic()
        if now - self._counted >= LOOK:
            self._tokens, self._counted = self._groups.tokens, now

    def _rest(self) -> None:
        """Nothing to generate: until something happens, or it is time to ask for prompts again."""
        began = time.monotonic()
        pause = max(self._ask_at - began, RETRY[0])
        if self._closed and not len(self._groups) and not self._wake.is_set():
            # Who had something in hand when it asked last has not said that it listens: it asks once more.
            if not self._listens or self._store.await_opening(self._holder, min(LISTEN, pause)):
                self._ask_at = self._looked = 0.0  # what opened the gate may be a version
        else:
            self._wake.wait(min(REST, pause))
            self._wake.clear()
        self._meter.waited(time.monotonic() - began)

    def _in_phase(self, phase: str) -> None:
        self._phase, self._beat = phase, time.monotonic()
        self._lane.enter(phase)

    def _alive(self) -> None:
        """Whoever asks a store that is away again and again waits, and does not hang."""
        self._beat = time.monotonic()

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        return patiently(f"{self.name}: {what}", call, self._rules.patience, meanwhile=self._alive)
