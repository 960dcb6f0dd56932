"""What is kept of one answer's sampling beside its tokens: which tokens were left to draw from, which experts ran."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from penstock.services.contracts import PenstockError
from penstock.services.trajectory import Experts, Kept, Routing, TokenIds

KeptSet = NDArray[np.int32] | None
"""Ids that were left to draw one token from, ascending; None where it is not known which."""


class KeptSets:
    """The sets of one answer, token by token."""

    def __init__(self, given: Kept | None, count: int) -> None:
        """Go on from `given`, which belongs to `count` tokens; without it nothing is known of these."""
        self._counts: list[int] = given.counts.tolist() if given is not None else [0] * count
        self._tokens: list[TokenIds] = [given.tokens] if given is not None else []

    def add(self, sets: Sequence[KeptSet]) -> None:
        for each in sets:
            self._counts.append(0 if each is None else len(each))
            if each is not None:
                self._tokens.append(each)

    @property
    def unknown(self) -> int:
        """Tokens of which it is not known what was left."""
        return self._counts.count(0)

    def record(self) -> Kept:
        tokens = np.concatenate([np.zeros(0, np.int32), *self._tokens])
        return Kept(counts=np.asarray(self._counts, np.int32), tokens=tokens)


class ExpertRows:
    """The experts of one answer and its prompt, a row per position: of the FIRST time that the position is computed.

    Positions are computed again after a weight swap and after a preemption. The first time is the one whose output
    the next token was drawn from, and that is the choice a learner must repeat.
    """

    def __init__(self, given: Routing | None, prompt: int, tokens: int) -> None:
        """Go on from `given`: an answer of so many tokens to a prompt of so many."""
        self._prompt = prompt
        self._rows: list[Experts] = []
        self._known = 0
        if given is not None and tokens:
            shape = (-1, given.layers, given.top_k)
            # The last token was never fed: what stands there is a placeholder.
            rows = np.concatenate([given.prompt.reshape(shape), given.answer.reshape(shape)[:-1]])
            self._rows, self._known = [rows], len(rows)

    def add(self, start: int, rows: Experts) -> None:
        """[n, layers, top_k] of the positions from `start` on; what is known already stays as it was.

        Raises PenstockError when positions in between are missing.
        """
        if start > self._known:
            raise PenstockError(
                f"the engine told the experts of the positions from {start} on, and those of {self._known} to "
                f"{start - 1} never: a part of this answer was not computed here, and cannot be replayed"
            )
        fresh = rows[self._known - start :]
        if len(fresh):
            self._rows.append(fresh)
            self._known += len(fresh)

    def record(self, tokens: int) -> Routing | None:
        """Of the prompt and the first `tokens` tokens; None without any. Raises PenstockError when some are missing."""
        if tokens == 0:
            return None
        needed = self._prompt + tokens - 1  # the last token was not fed
        if self._known < needed:
            raise PenstockError(f"experts are known of {self._known} positions, and {needed} were computed")
        rows = np.concatenate(self._rows)[:needed]
        answer = np.concatenate([rows[self._prompt :], np.zeros_like(rows[:1])])
        return Routing(
            layers=rows.shape[1],
            top_k=rows.shape[2],
            prompt=rows[: self._prompt].reshape(-1),
            answer=answer.reshape(-1),
        )
