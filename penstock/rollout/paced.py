"""A generator that answers at random, at a set rate: for drills.

A drill runs the whole of a run, actors, store, scorers and learner, without an engine: to try a cluster, the page,
alerts or an autoscaler before there is a GPU, and to test them. Nothing is learned in it.

Every token but the end has the same probability, whatever came before; the log-probabilities that are recorded are
those of that distribution. A model with fresh random weights is near to it, so that a learner has something to do and
its weights stay finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from penstock.rollout.fake import FakeGenerator
from penstock.rollout.recorder import Track
from penstock.services.contracts import Request
from penstock.services.trajectory import Completion, Finish
from penstock.services.versions import Version


class PacedGenerator(FakeGenerator):
    """`contracts.Generator` that samples `tokens_per_second` in all, however many requests share them.

    `end` ends an answer, with probability 1/`mean_length` at every token, so that lengths are geometric with that mean
    where the budget does not cut them. `text_of` makes the text of an answer of its tokens. `fetch` is called with the
    version at every swap.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        end: int,
        limit: int,
        slots: int,
        seed: int,
        name: str,
        tokens_per_second: float,
        mean_length: float,
        text_of: Callable[[Sequence[int]], str],
        fetch: Callable[[Version], object] | None = None,
    ) -> None:
        super().__init__(vocabulary=vocabulary, end=end, limit=limit, slots=slots, seed=seed, name=name, fetch=fetch)
        self._seconds_per_token = 1 / tokens_per_second
        self._ending = 1 / mean_length
        self._log_end = math.log(self._ending)
        self._log_other = math.log1p(-self._ending) - math.log(vocabulary - 1)
        self._text_of = text_of
        self._due = 0.0

    def submit(self, request: Request) -> None:
        if request.sampling.filtered:
            raise ValueError("top_p and top_k mean nothing where every token is as likely as another")
        super().submit(request)

    def step(self) -> list[tuple[str, Completion]]:
        """One more token for every request that has a slot, when their time has come."""
        sampled = min(len(self._tracks), self._slots)
        self._due = max(self._due, time.monotonic()) + sampled * self._seconds_per_token
        done = super().step()
        time.sleep(max(0.0, self._due - time.monotonic()))
        return done

    def _draw(self, track: Track) -> None:
        if self._random.random() < self._ending:
            track.add([self._end], [self._log_end], self._version)
            return
        token = int(self._random.integers(self._vocabulary - 1))
        track.add([token + (token >= self._end)], [self._log_other], self._version)

    def _complete(self, track: Track, finish: Finish) -> Completion:
        tokens = track.tokens[:-1] if finish == "stop" else track.tokens
        return track.completion(finish, self._text_of(tokens), self.name, "paced")
