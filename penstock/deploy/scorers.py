"""Scorers as Ray actors, and the end of the wire that a rollout worker holds.

A scorer has no state that a run depends on, so Ray itself restarts it and repeats the calls it lost.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import ray

from penstock.deploy.deaths import redirect_output
from penstock.deploy.exporter import Export, export_actor
from penstock.reward.config import RewardSection
from penstock.services.codec import decode, encode
from penstock.services.model_config import ModelSection
from penstock.services.trajectory import Completion, Prompt, Trajectory

RESTARTS = 5
"""How often Ray starts a scorer again before the calls it holds fail."""


class ScorerActor:
    """`GroupScorer` in a process of its own. All calls are asynchronous: groups are judged side by side."""

    def __init__(
        self,
        name: str,
        log: Path,
        section: RewardSection,
        start: ModelSection | None,
        temperature: float,
        device: str,
        environment: dict[str, str],
        export: Export | None,
    ) -> None:
        """`start` is the model that the run starts from, where a reference is needed; None loads no model.
        `environment` holds what rules may see besides; it travels here and not in Ray's own description of the actor,
        which Ray keeps."""
        redirect_output(log)
        os.environ.update(environment)
        from penstock.reward.reference import load_reference
        from penstock.reward.scorer import GroupScorer

        self.name = name
        reference = load_reference(section.reference, start, temperature, device) if start is not None else None
        self._scorer = GroupScorer(section, reference)
        # To Ray the name begins with the run's; the run is a label of its own.
        export_actor(export, "scorer", f"scorer-{name.rpartition('-')[2]}", self._scorer.stats)

    async def ready(self) -> dict[str, Any]:
        """Answers once the actor is built."""
        return facts_of_process()

    @ray.method(max_task_retries=-1)  # type: ignore[untyped-decorator]  # Ray has no types
    async def score(self, prompt: bytes, completions: list[bytes]) -> list[bytes]:
        """Judge the completions of one prompt; records travel encoded."""
        judged = self._scorer.submit(decode(prompt, Prompt), [decode(c, Completion) for c in completions])
        return [encode(trajectory) for trajectory in await asyncio.wrap_future(judged)]

    async def stats(self) -> dict[str, float]:
        """Counts and times, and which process says so."""
        facts = facts_of_process()
        return self._scorer.stats() | {"process/rss": float(facts["rss"]), "process/pid": float(facts["pid"])}


class RemoteScorer:
    """`contracts.Scorer` over scorer actors: each group goes to the one with the fewest in hand."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = list(actors)
        self._in_hand = [0] * len(actors)
        self._lock = threading.Lock()

    def submit(self, prompt: Prompt, completions: Sequence[Completion]) -> Future[tuple[Trajectory, ...]]:
        """The future holds one trajectory per completion; it raises what Ray raises when the scorers are gone."""
        with self._lock:
            chosen = min(range(len(self._actors)), key=self._in_hand.__getitem__)
            self._in_hand[chosen] += 1
        reply = self._actors[chosen].score.remote(encode(prompt), [encode(c) for c in completions])
        result: Future[tuple[Trajectory, ...]] = Future()
        result.set_running_or_notify_cancel()

        def hand_over(answer: Future[list[bytes]]) -> None:
            with self._lock:
                self._in_hand[chosen] -= 1
            try:
                result.set_result(tuple(decode(data, Trajectory) for data in answer.result()))
            except Exception as error:  # noqa: BLE001  belongs to whoever waits for the future
                result.set_exception(error)

        reply.future().add_done_callback(hand_over)
        return result

    def close(self) -> None:
        """The actors belong to the run, not to a worker."""


def start_scorer(name: str, log: Path, options: dict[str, Any], arguments: dict[str, Any], _: int) -> Any:
    """A scorer's handle; it is still starting."""
    actor = ray.remote(ScorerActor).options(name=name, max_restarts=RESTARTS, max_concurrency=64, **options)
    return actor.remote(name, log, **arguments)


def facts_of_process() -> dict[str, Any]:
    """Where an actor runs."""
    return {"pid": os.getpid(), "node": socket.gethostname(), "rss": psutil.Process().memory_info().rss}
