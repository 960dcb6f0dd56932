"""What is known of every completion in flight, token by token: the same for every engine.

Tokens, log-probabilities and versions are kept here and not read back from an engine, so that an unfinished
answer can be handed on at any moment, also when its engine has died.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from penstock.services.contracts import Request
from penstock.services.trajectory import Completion, Finish, Span, Unfinished
from penstock.services.versions import Version


@dataclass
class Track:
    """One completion in flight."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    older_kv: bool = False
    """True once the engine's cache holds keys and values of this request from weights that have been replaced."""
    admitted: bool = False
    """True once the engine knows the request."""
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        resume = self.request.resume
        if resume is not None:
            self.tokens = resume.tokens.tolist()
            self.logprobs = resume.logprobs.tolist()
            self.spans = list(resume.spans)

    def add(self, tokens: Sequence[int], logprobs: Sequence[float], version: Version) -> None:
        """Append tokens that `version` has just sampled."""
        if not tokens:
            return
        self.tokens += tokens
        self.logprobs += logprobs
        count = len(tokens)
        last = self.spans[-1] if self.spans else None
        if last is not None and last.version == version and last.older_kv == self.older_kv:
            count += self.spans.pop().count
        self.spans.append(Span(lineage=version.lineage, step=version.step, count=count, older_kv=self.older_kv))

    def unfinished(self) -> Unfinished:
        return Unfinished(
            tokens=np.asarray(self.tokens, np.int32),
            logprobs=np.asarray(self.logprobs, np.float32),
            spans=tuple(self.spans),
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
        )
