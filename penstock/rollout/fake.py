"""A generator without an engine, for trying and testing what is around one.

Its policy is a table: the logits of the next token depend on the last token only. Every version has a table of
its own, drawn from a seed, so that log-probabilities can be checked against `table`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from penstock.rollout.config import KEEP_NOTHING, Keep
from penstock.rollout.recorder import Recorder, Track
from penstock.services.contracts import Request, SwapReport
from penstock.services.trajectory import Completion, Experts, Finish, Sampling, Unfinished
from penstock.services.versions import FIRST, Version


def table(version: Version, vocabulary: int, temperature: float = 1.0) -> NDArray[np.float64]:
    """[vocabulary, vocabulary] log-probabilities of the next token (column) after the last one (row)."""
    logits = np.random.default_rng([version.lineage, version.step]).normal(size=(vocabulary, vocabulary))
    logits /= temperature or 1.0
    logits -= logits.max(-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), np.float64)


def filtered(logprobs: NDArray[np.float64], sampling: Sampling) -> NDArray[np.float64]:
    """[vocabulary] what top_k and then top_p leave of a distribution, renormalised; −inf elsewhere."""
    order = np.argsort(-logprobs, kind="stable")
    left = order[: sampling.top_k or len(order)]
    shares = np.exp(logprobs[left]) / np.exp(logprobs[left]).sum()
    left = left[np.cumsum(shares) - shares < sampling.top_p]
    kept = np.full_like(logprobs, -np.inf)
    kept[left] = logprobs[left] - np.log(np.exp(logprobs[left]).sum())
    return kept


def experts(version: Version, tokens: Sequence[int]) -> Experts:
    """[n, 2 layers, 2 of 4 experts] that the versions of this policy would choose for tokens."""
    first = (np.asarray(tokens)[:, None] + version.step + np.arange(2)) % 4
    return np.stack([first, (first + 1) % 4], -1).astype(np.int16)


class FakeGenerator(Recorder):
    """`contracts.Generator` over the tables. Temperature 0 is greedy; top_p and top_k need `keep.most_kept`."""

    def __init__(
        self,
        *,
        vocabulary: int = 32,
        end: int = 1,
        limit: int = 64,
        slots: int = 64,
        seed: int = 0,
        name: str = "fake",
        fetch: Callable[[Version], object] | None = None,
        keep: Keep = KEEP_NOTHING,
    ) -> None:
        """end: the end-of-sequence token. limit: longest prompt and answer together. slots: requests that advance
        at a time. fetch: called with the version at every swap; what it raises, the swap raises. keep: what is
        recorded beside tokens and log-probs."""
        super().__init__(keep, limit)
        self.name = name
        self._vocabulary, self._end, self._slots = vocabulary, end, slots
        self._random = np.random.default_rng(seed)
        self._fetch = fetch
        self._version = FIRST
        self._tables: dict[float, NDArray[np.float64]] = {}
        self.closed = False

    @property
    def version(self) -> Version:
        return self._version

    def submit(self, request: Request) -> None:
        if request.sampling.filtered and not self._keep.most_kept:
            raise ValueError("top_p and top_k need a generator that keeps what they left to draw from")
        self._tracks[request.key] = self._begin(request)

    def step(self) -> list[tuple[str, Completion]]:
        """One more token for every request that has a slot."""
        done = []
        for key, track in list(self._tracks.items())[: self._slots]:
            if self._room(track) > 0:
                self._draw(track)
            finish: Finish | None = "stop" if self._ends(track) else "length" if self._room(track) <= 0 else None
            if finish is not None:
                del self._tracks[key]
                done.append((key, self._complete(track, finish)))
        return done

    def take_back(self, keys: Sequence[str]) -> dict[str, Unfinished]:
        return {key: self._tracks.pop(key).unfinished() for key in keys}

    def cut(self, keys: Sequence[str]) -> list[tuple[str, Completion]]:
        return [(key, self._complete(self._tracks.pop(key), "stale")) for key in keys]

    def prepared(self, version: Version) -> bool:  # noqa: ARG002  (a generator's signature)
        return True

    def swap(self, version: Version) -> SwapReport:
        began = time.perf_counter()
        if self._fetch is not None:
            self._fetch(version)
        self._version = version
        self._tables.clear()
        return SwapReport(version, time.perf_counter() - began, 0.0, 0.0, len(self._tracks))

    def close(self) -> None:
        self._tracks.clear()
        self.closed = True

    def _ends(self, track: Track) -> bool:
        return bool(track.tokens) and track.tokens[-1] in (self._end, *track.request.sampling.stop_token_ids)

    def _draw(self, track: Track) -> None:
        sampling = track.request.sampling
        temperature = sampling.temperature
        if temperature not in self._tables:
            self._tables[temperature] = table(self._version, self._vocabulary, temperature)
        last = track.tokens[-1] if track.tokens else int(track.request.prompt.tokens[-1])
        logprobs = self._tables[temperature][last]
        if sampling.filtered:
            logprobs = filtered(logprobs, sampling)
        noise = self._random.gumbel(size=self._vocabulary) if temperature > 0 else 0.0
        token = int((logprobs + noise).argmax())
        left = np.flatnonzero(np.isfinite(logprobs)).astype(np.int32)
        if track.experts is not None:
            track.experts.add(0, experts(self._version, [*track.request.prompt.tokens.tolist(), *track.tokens]))
        known = len(left) <= self._keep.most_kept
        track.add([token], [float(logprobs[token])], self._version, [left if known else None])

    def _complete(self, track: Track, finish: Finish) -> Completion:
        text = " ".join(map(str, track.tokens))
        return track.completion(finish, text, self.name, "fake")
