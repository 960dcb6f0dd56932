"""The end of the wire to the scorers that a rollout worker holds.

The set of scorers changes while the run goes on: the driver sends the new one, and every group after that goes to a
scorer of it. What is in the hands of one that leaves is waited for; what was in the hands of one that died is scored
again by another.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray.exceptions

from penstock.services.codec import decode, encode
from penstock.services.contracts import PenstockError
from penstock.services.trajectory import Completion, Prompt, Trajectory

SHUNNED = 60.0
"""Seconds for which a scorer that did not answer gets nothing, unless the driver says that it is back."""


@dataclass
class _Work:
    """One group on its way through a scorer."""

    prompt: bytes
    completions: list[bytes]
    result: Future[tuple[Trajectory, ...]] = field(default_factory=Future)
    lost: dict[str, bool] = field(default_factory=dict)
    """Scorers that did not answer, and whether they are gone for good."""


class RemoteScorer:
    """`contracts.Scorer` over scorer actors by name: each group goes to the one with the fewest in hand, of several to
    the one whose turn is longest ago."""

    def __init__(self, actors: Mapping[str, Any], number: int = 0) -> None:
        """`number` says which set of scorers this is; see `use`."""
        self._actors, self._number = dict(actors), number
        self._in_hand: Counter[str] = Counter()
        self._turns: Counter[str] = Counter()
        """When each was given a group last, by the number of that group."""
        self._given = 0
        self._shunned: dict[str, float] = {}
        self._lock = threading.Lock()
        # Ray's own thread brings the answers; it must not wait for the sending of another call.
        self._again = ThreadPoolExecutor(1, "score-again")

    def use(self, number: int, actors: Mapping[str, Any]) -> None:
        """Give groups to these scorers from now on. A set with a smaller number than the last is older, and is
        ignored: calls of one driver may overtake each other."""
        with self._lock:
            if number > self._number:
                self._number, self._actors = number, dict(actors)
                self._shunned.clear()

    def holdings(self) -> dict[str, Any]:
        """Which set is in use, and how many groups each scorer has of this worker's; plain values."""
        with self._lock:
            return {"set": self._number, "in_hand": dict(+self._in_hand)}

    def submit(self, prompt: Prompt, completions: Sequence[Completion]) -> Future[tuple[Trajectory, ...]]:
        """The future holds one trajectory per completion; it raises what Ray raises when the scorers are gone."""
        work = _Work(encode(prompt), [encode(c) for c in completions])
        work.result.set_running_or_notify_cancel()
        self._send(work)
        return work.result

    def close(self) -> None:
        """The actors belong to the run, not to a worker."""
        self._again.shutdown(wait=False)

    def _send(self, work: _Work) -> None:
        with self._lock:
            name, actor, last = self._choose(work.lost)
            self._in_hand[name] += 1
            self._given += 1
            self._turns[name] = self._given
        # With nobody else to ask, Ray waits until it has started this one again, and repeats the call there.
        call = actor.score.options(max_task_retries=-1 if last else 0)
        reply = call.remote(work.prompt, work.completions)
        reply.future().add_done_callback(partial(self._answered, work, name))

    def _choose(self, lost: Mapping[str, bool]) -> tuple[str, Any, bool]:
        """A scorer, and whether nobody else is left to ask. Raises PenstockError when there is none."""
        if not self._actors:
            raise PenstockError("there is no scorer to give a group to")
        now = time.monotonic()

        def reluctance(name: str) -> tuple[bool, bool, bool, int, int]:
            shunned = self._shunned.get(name, 0.0) > now
            return lost.get(name, False), name in lost, shunned, self._in_hand[name], self._turns[name]

        able = sum(not any(reluctance(name)[:3]) for name in self._actors)
        chosen = min(self._actors, key=reluctance)
        return chosen, self._actors[chosen], able <= 1

    def _answered(self, work: _Work, name: str, answer: Future[list[bytes]]) -> None:
        """Runs in Ray's thread, and does nothing there that could wait."""
        error = answer.exception()
        with self._lock:
            self._in_hand[name] -= 1
            again = isinstance(error, ray.exceptions.RayActorError) and self._lost(work, name, error)
        if again:
            self._again.submit(self._send_again, work)
            return
        try:
            work.result.set_result(tuple(decode(data, Trajectory) for data in answer.result()))
        except Exception as wrong:  # noqa: BLE001  belongs to whoever waits for the future
            work.result.set_exception(wrong)

    def _lost(self, work: _Work, name: str, error: ray.exceptions.RayActorError) -> bool:
        """Remember a scorer that did not answer; True when another may be asked, or it once more."""
        before = work.lost.get(name)
        work.lost[name] = isinstance(error, ray.exceptions.ActorDiedError)
        self._shunned[name] = time.monotonic() + SHUNNED
        gone = {lost for lost, for_good in work.lost.items() if for_good}
        return work.lost[name] != before and not self._actors.keys() <= gone

    def _send_again(self, work: _Work) -> None:
        try:
            self._send(work)
        except Exception as wrong:  # noqa: BLE001  belongs to whoever waits for the future
            work.result.set_exception(wrong)
