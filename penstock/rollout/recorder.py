"""What is known of every completion in flight, token by token: the same for every engine.

Tokens, log-probabilities and versions are kept here and not read back from an engine, so that an unfinished
answer can be handed on at any moment, also when its engine has died.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from penstock.rollout.config import KEEP_NOTHING, Keep
from penstock.rollout.errors import PromptTooLong
from penstock.rollout.keeping import ExpertRows, KeptSet, KeptSets
from penstock.services.contracts import Request
from penstock.services.trajectory import Completion, Finish, Span, Unfinished
from penstock.services.versions import Version


@dataclass
class Track:
    """One completion in flight."""

    request: Request
    keep: Keep = KEEP_NOTHING
    """What is recorded beside tokens and log-probs."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    older_kv: bool = False
    """True once the engine's cache holds keys and values of this request from weights that have been replaced."""
    admitted: bool = False
    """True once the engine knows the request."""
    started: float = field(default_factory=time.time)
    tally: Counter[str] = field(default_factory=Counter)
    """Where the tokens are counted that are sampled here."""
    kept: KeptSets | None = field(init=False, default=None)
    """None where tokens are drawn from the whole vocabulary, or their sets are not asked for."""
    experts: ExpertRows | None = field(init=False, default=None)
    """None unless routing is kept."""

    def __post_init__(self) -> None:
        resume = self.request.resume
        if resume is not None:
            self.tokens = resume.tokens.tolist()
            self.logprobs = resume.logprobs.tolist()
            self.spans = list(resume.spans)
        if self.keep.most_kept and self.request.sampling.filtered:
            self.kept = KeptSets(resume.kept if resume is not None else None, len(self.tokens))
        if self.keep.routing:
            given = resume.routing if resume is not None else None
            self.experts = ExpertRows(given, len(self.request.prompt.tokens), len(self.tokens))

    def add(
        self, tokens: Sequence[int], logprobs: Sequence[float], version: Version, kept: Sequence[KeptSet] = ()
    ) -> None:
        """Append tokens that `version` has just sampled; `kept`, where sets are kept, has one for each."""
        if not tokens:
            return
        if self.kept is not None:
            assert len(kept) == len(tokens), (len(kept), len(tokens))
            self.kept.add(kept)
        self.tokens += tokens
        self.logprobs += logprobs
        count = len(tokens)
        self.tally["sampled"] += count
        last = self.spans[-1] if self.spans else None
        if last is not None and last.version == version and last.older_kv == self.older_kv:
            count += self.spans.pop().count
        self.spans.append(Span(lineage=version.lineage, step=version.step, count=count, older_kv=self.older_kv))

    def unfinished(self) -> Unfinished:
        return Unfinished(
            tokens=np.asarray(self.tokens, np.int32),
            logprobs=np.asarray(self.logprobs, np.float32),
            spans=tuple(self.spans),
            kept=self.kept.record() if self.kept is not None else None,
            routing=self.experts.record(len(self.tokens)) if self.experts is not None else None,
        )

    def completion(self, finish: Finish, text: str, worker: str, engine: str) -> Completion:
        return Completion(
            tokens=np.asarray(self.tokens, np.int32),
            logprobs=np.asarray(self.logprobs, np.float32),
            actions=np.ones(len(self.tokens), np.bool_),
            spans=tuple(self.spans),
            finish=finish,
            text=text,
            worker=worker,
            engine=engine,
            started=self.started,
            ended=time.time(),
            kept=self.kept.record() if self.kept is not None else None,
            routing=self.experts.record(len(self.tokens)) if self.experts is not None else None,
        )


class Recorder:
    """Base of generators: the completions in their hands, by key and in the order of submission. `longest`: most tokens
    of a prompt and its answer together."""

    def __init__(self, keep: Keep, longest: int) -> None:
        self._keep, self._longest = keep, longest
        self._tracks: dict[str, Track] = {}
        self._tally: Counter[str] = Counter()

    @property
    def sampled(self) -> int:
        """Tokens sampled here since the start, evaluations included; those that another worker handed over are not."""
        return self._tally["sampled"]

    @property
    def in_flight(self) -> tuple[str, ...]:
        return tuple(self._tracks)

    def spans(self, key: str) -> tuple[Span, ...]:
        """The versions that have sampled tokens of this request so far."""
        return tuple(self._tracks[key].spans)

    def _begin(self, request: Request) -> Track:
        """A track of its own, in no one's hands yet. Raises PromptTooLong when there is no room for one more token."""
        assert request.key not in self._tracks, request.key
        prompt = len(request.prompt.tokens)
        if prompt >= self._longest:
            raise PromptTooLong(
                f"prompt {request.prompt.index} ({request.prompt.source} row {request.prompt.row}) has {prompt} "
                f"tokens, engine.max_model_len = {self._longest} leaves no room for an answer; raise it, or drop such "
                "rows with data.max_prompt_tokens"
            )
        return Track(request, self._keep, tally=self._tally)

    def _room(self, track: Track) -> int:
        """How many more tokens this completion may have."""
        budget = min(track.request.sampling.max_tokens, self._longest - len(track.request.prompt.tokens))
        return budget - len(track.tokens)
