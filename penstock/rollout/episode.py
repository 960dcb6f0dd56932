"""One group's life in a worker: from its ticket to its completions, or to what another worker goes on from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from penstock.services.contracts import Request
from penstock.services.replay import Ticket
from penstock.services.trajectory import (
    Completion,
    Group,
    PartialGroup,
    Prompt,
    Sampling,
    Span,
    Trajectory,
    Unfinished,
)

Member = Completion | Unfinished | None


@dataclass
class Episode:
    """A group in one worker's hands."""

    ticket: Ticket
    prompt: Prompt
    sampling: Sampling
    members: list[Member]
    """What exists of each answer; None where nothing was begun."""
    scoring: Future[tuple[Trajectory, ...]] | None = None
    since: float = field(default_factory=time.monotonic)
    """When scoring was asked for."""

    @classmethod
    def begin(
        cls, ticket: Ticket, prompt: Prompt, sampling: Sampling, size: int, partial: PartialGroup | None
    ) -> Episode:
        """A group of `size` answers that goes on from `partial`, where another worker had begun it."""
        given: list[Member] = list(partial.members[:size]) if partial is not None else []
        return cls(ticket, prompt, sampling, given + [None] * (size - len(given)))

    def key(self, member: int) -> str:
        """Of a member's request; the fence keeps it apart from an earlier lease of the same group."""
        return f"{self.ticket.index}.{self.ticket.fence}.{member}"

    def requests(self) -> list[Request]:
        """For every answer that is not complete."""
        return [
            Request(self.key(i), self.prompt, self.sampling, resume=m if isinstance(m, Unfinished) else None)
            for i, m in enumerate(self.members)
            if not isinstance(m, Completion)
        ]

    def absorb(self, key: str, completion: Completion) -> int:
        """One answer is complete; returns how many of its tokens this worker has sampled."""
        member = int(key.rpartition(".")[2])
        before = self.members[member]
        self.members[member] = completion
        return len(completion.tokens) - (len(before.tokens) if before is not None else 0)

    @property
    def completions(self) -> tuple[Completion, ...]:
        return tuple(m for m in self.members if isinstance(m, Completion))

    @property
    def complete(self) -> bool:
        return len(self.completions) == len(self.members)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Of the answers that are complete."""
        return tuple(span for c in self.completions for span in c.spans)

    def group(self, trajectories: tuple[Trajectory, ...]) -> Group:
        return Group(prompt=self.prompt, sampling=self.sampling, trajectories=trajectories)

    def interrupt(self, unfinished: Mapping[str, Unfinished]) -> None:
        """The generator has given up the answers that are not complete; this is what it had of them."""
        for i, member in enumerate(self.members):
            if not isinstance(member, Completion):
                self.members[i] = unfinished.get(self.key(i), member)

    def partial(self) -> PartialGroup | None:
        """What another worker goes on from; None when it is nothing."""
        members = tuple(m or _NOTHING for m in self.members)
        return PartialGroup(members=members) if self.tokens else None

    @property
    def tokens(self) -> int:
        """Of all answers, as far as they are known here."""
        return sum(len(m.tokens) for m in self.members if m is not None)


_NOTHING = Unfinished(tokens=np.zeros(0, np.int32), logprobs=np.zeros(0, np.float32), spans=())
