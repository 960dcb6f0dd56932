"""The groups in one worker's hands: from the ticket to one of the ways in which a group leaves a worker.

A group is put (scored), refused (cannot be completed), handed back (another worker goes on), or fenced (it was
somebody else's already). Whatever happens, its requests leave the generator and its lease is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from penstock.rollout.episode import Episode
from penstock.rollout.errors import PromptTooLong
from penstock.rollout.leases import Leases
from penstock.rollout.meter import Meter
from penstock.rollout.patience import patiently
from penstock.services.codec import CodecError, decode, encode
from penstock.services.contracts import DeadlinePassed, Fenced, Generator, Scorer
from penstock.services.replay import Finished, ReplayStore, Ticket
from penstock.services.staleness import Forks, Outlived, binding_version, lag
from penstock.services.trajectory import Completion, Group, PartialGroup, Prompt, Sampling, Span
from penstock.services.versions import Version

log = logging.getLogger(__name__)

T = TypeVar("T")

_TOKENS = {"groups_put": "tokens_put", "handed_back": "tokens_handed_back"}
"""Where the tokens of a group are counted that leaves a worker this way; in any other they are lost."""
MOST_CAUSE = 500
"""Characters of a cause that the ledger is told; the worker's log has all of it."""


@dataclass(frozen=True)
class Rules:
    """How a worker plays; the values of the run file that concern it."""

    group_size: int
    max_lag: int
    outlived: Outlived = "drop"
    max_groups: int = 32
    lease: float = 60.0
    quorum: int = 1
    evaluation_slots: int = 8
    patience: float = 60.0
    """Seconds for which a store that does not answer is asked again."""
    scoring_deadline: float = 900.0
    """Seconds that one group's scoring may take."""
    weights_deadline: float = 600.0
    """Seconds to wait for the first published weights."""


class Groups:
    """Episodes by index and by request. One thread owns it."""

    def __init__(
        self,
        store: ReplayStore,
        generator: Generator,
        sampling: Sampling,
        rules: Rules,
        leases: Leases,
        meter: Meter,
        alive: Callable[[], object],
    ) -> None:
        """`alive` is called while a store that is away is asked again and again."""
        self._store = store
        self._generator = generator
        self._sampling = sampling
        self._rules = rules
        self.max_lag = rules.max_lag
        """The bound as it is now; a person or a guard may move it while the run goes on."""
        self._leases = leases
        self._meter = meter
        self._alive = alive
        self._episodes: dict[int, Episode] = {}
        self._by_key: dict[str, Episode] = {}

    def __len__(self) -> int:
        return len(self._episodes)

    @property
    def generating(self) -> int:
        """Answers that are not complete."""
        return len(self._by_key)

    @property
    def tokens(self) -> int:
        """What those have so far."""
        flying = self._by_key.keys() & set(self._generator.in_flight)
        return sum(span.count for key in flying for span in self._generator.spans(key))

    def begin(self, ticket: Ticket, prompt: Prompt, published: Version, forks: Forks) -> None:
        """Submit the answers of a group, or what another worker left of them. What is beyond the bound already, so
        that `take` would drop the group, is forgotten: the group starts anew."""
        self._leases.hold(ticket)
        partial = _partial_of(ticket)
        given = sum(len(member.tokens) for member in partial.members) if partial is not None else 0
        self._meter.count("tokens_resumed", by=given)
        if partial is not None and self._outlived(partial, published, forks):
            self._meter.count("tokens_dropped", by=given)
            partial = None
        episode = Episode.begin(ticket, prompt, self._sampling, self._rules.group_size, partial)
        self._episodes[ticket.index] = episode
        self._meter.count("resumed", by=int(partial is not None))
        try:
            for request in episode.requests():
                self._generator.submit(request)
                self._by_key[request.key] = episode
        except PromptTooLong as error:
            self._refuse(episode, "prompt_too_long", str(error))

    def _outlived(self, partial: PartialGroup, published: Version, forks: Forks) -> bool:
        """Whether the group could not be trained on; where tokens are masked, one fresh token to come is enough."""
        lags = (lag(published, span.version, forks) for member in partial.members for span in member.spans)
        return self._rules.outlived != "mask" and max(lags, default=0) > self.max_lag

    def absorb(self, key: str, completion: Completion) -> None:
        """One answer is complete. Answers of groups that were forgotten meanwhile are ignored."""
        episode = self._by_key.pop(key, None)
        if episode is not None:
            self._meter.sampled(episode.absorb(key, completion))
            if completion.kept is not None:
                self._meter.count("mask_unknown", by=int((completion.kept.counts == 0).sum()))

    def score(self, scorer: Scorer, scored: Callable[[], object]) -> None:
        """Have complete groups judged; `scored` is called, from any thread, when one is."""
        for episode in self._episodes.values():
            if episode.complete and episode.scoring is None:
                episode.since = time.monotonic()
                episode.scoring = scorer.submit(episode.prompt, episode.completions)
                episode.scoring.add_done_callback(lambda _: scored())

    def put(self, published: Version, forks: Forks) -> None:
        """Hand groups that are judged to the store. Raises DeadlinePassed, and what a scorer raised."""
        waiting = [episode for episode in self._episodes.values() if episode.scoring is not None]
        judged = [episode for episode in waiting if episode.scoring is not None and episode.scoring.done()]
        whole = [(episode, group) for episode in judged if (group := self._whole(episode)) is not None]
        if whole:
            self._put(whole, published, forks)
        for episode in waiting:
            waited = time.monotonic() - episode.since
            if episode not in judged and waited > self._rules.scoring_deadline:
                raise DeadlinePassed(
                    f"the scores of group {episode.ticket.index} ({_row(episode)}) have been missing for "
                    f"{waited:.0f} s, the limit is {self._rules.scoring_deadline:.0f} s (rollout.scoring_deadline); "
                    "the scorer is stuck"
                )

    def _whole(self, episode: Episode) -> Group | None:
        """The judged group; None when it is of no use, and refused."""
        assert episode.scoring is not None
        group = episode.group(episode.scoring.result(timeout=0))
        if len(group.scored) < self._rules.quorum:
            causes = "; ".join(sorted({t.unscored for t in group.trajectories if t.unscored is not None}))
            had = f"group {episode.ticket.index} ({_row(episode)}) has {len(group.scored)} scores"
            self._refuse(episode, "unscored", f"{had} of {self._rules.quorum} that are needed: {causes}")
        elif not group.spans:
            self._refuse(episode, "stale", "every answer was cut before its first token")
        else:
            return group
        return None

    def _put(self, whole: list[tuple[Episode, Group]], published: Version, forks: Forks) -> None:
        """All of them on one trip: the store takes many for little more than one."""
        outlived = self._rules.outlived
        finished = [
            Finished(episode.ticket, encode(group), binding_version(group.spans, published, forks, outlived))
            for episode, group in whole
        ]
        fenced = self._ask("put", lambda: self._store.put_all(finished))
        for episode, _ in whole:
            with self._leaving(episode, "fenced" if episode.ticket.index in fenced else "groups_put"):
                pass

    def end_outlived(self, published: Version, forks: Forks) -> None:
        """After a weight swap to `published`: groups that `take` would drop in any case end here; with `cut`,
        answers that would be too old after one more step are ended while they can still be used."""
        if self._rules.outlived == "mask":
            return  # one fresh token is enough

        def age(spans: list[Span]) -> int:
            return max((lag(published, span.version, forks) for span in spans), default=0)

        flying = set(self._generator.in_flight)
        for episode in list(self._episodes.values()):
            begun = {r.key: list(self._generator.spans(r.key)) for r in episode.requests() if r.key in flying}
            everything = [span for spans in begun.values() for span in spans] + list(episode.spans)
            if begun and age(everything) > self.max_lag:
                self._refuse(episode, "stale", f"an answer was older than max_lag at the swap to version {published}")
            elif self._rules.outlived == "cut":
                old = [key for key, spans in begun.items() if spans and age(spans) >= self.max_lag]
                self._meter.count("cut", by=len(old))
                for key, completion in self._generator.cut(old):
                    self.absorb(key, completion)

    def forget_lost(self) -> None:
        """Groups whose lease turned out to be somebody else's."""
        for ticket in self._leases.lost():
            episode = self._episodes.get(ticket.index)
            if episode is not None and episode.ticket is ticket:
                with self._leaving(episode, "fenced"):
                    pass

    def hand_back(self) -> None:
        """Release every group with what exists of it."""
        for episode in list(self._episodes.values()):
            self._stop(episode)
            with self._leaving(episode, "handed_back"):
                self._release(episode.ticket, episode.partial())

    def _release(self, ticket: Ticket, partial: PartialGroup | None) -> None:
        payload = encode(partial) if partial is not None else None
        self._ask("release", lambda: self._store.release(ticket, payload))

    def _refuse(self, episode: Episode, reason: str, cause: str) -> None:
        # Growing old is part of an asynchronous run; the others are faults of the data or of the reward.
        log.log(logging.INFO if reason == "stale" else logging.WARNING, "%s: %s", reason, cause)
        with self._leaving(episode, "refused"):
            self._ask("refuse", lambda: self._store.refuse(episode.ticket, reason, cause[:MOST_CAUSE]))

    @contextlib.contextmanager
    def _leaving(self, episode: Episode, outcome: str) -> Iterator[None]:
        """The group leaves this worker as `outcome`, or as fenced."""
        try:
            yield
        except Fenced:
            outcome = "fenced"
        self._leases.drop(episode.ticket)
        self._stop(episode)
        self._meter.count(outcome)
        self._meter.count(_TOKENS.get(outcome, "tokens_dropped"), by=episode.tokens)
        del self._episodes[episode.ticket.index]

    def _stop(self, episode: Episode) -> None:
        """Take the group's requests out of the generator, and keep what it had of them."""
        for key in [key for key, owner in self._by_key.items() if owner is episode]:
            del self._by_key[key]
        own = {request.key for request in episode.requests()}
        episode.interrupt(self._generator.take_back([key for key in self._generator.in_flight if key in own]))

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        return patiently(what, call, self._rules.patience, meanwhile=self._alive)


def _partial_of(ticket: Ticket) -> PartialGroup | None:
    if ticket.partial is None:
        return None
    try:
        return decode(ticket.partial, PartialGroup)
    except CodecError as error:
        # The whole group is played again: a copy that nobody can read must not end worker after worker.
        log.warning("what was handed back of group %d cannot be used: %s", ticket.index, error)
        return None


def _row(episode: Episode) -> str:
    """Where its prompt comes from."""
    return f"{episode.prompt.source} row {episode.prompt.row}"
