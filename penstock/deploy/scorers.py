"""Scorers as Ray actors.

A scorer has no state that a run depends on, so Ray itself restarts it. Rollout workers hold the other end of the wire:
`remote_scorer.py`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import ray

from penstock.deploy.deaths import begin_life
from penstock.deploy.exporter import Export, export_actor
from penstock.deploy.memory import resident
from penstock.reward.config import RewardSection
from penstock.services.codec import decode, encode
from penstock.services.model_config import ModelSection
from penstock.services.trajectory import Completion, Prompt


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
        begin_life(log)
        os.environ.update(environment)
        from penstock.reward.reference import load_reference
        from penstock.reward.scorer import GroupScorer

        self.name = name
        reference = load_reference(section.reference, start, temperature, device) if start is not None else None
        self._scorer = GroupScorer(section, reference)
        self._in_hand = 0
        export_actor(export, "scorer", name, self._counts)

    @ray.method(max_task_retries=-1)  # type: ignore[untyped-decorator]  # Ray has no types
    async def ready(self) -> dict[str, Any]:
        """Answers once the actor is built, also when it had to be begun again."""
        return facts_of_process()

    async def score(self, prompt: bytes, completions: list[bytes]) -> list[bytes]:
        """Judge the completions of one prompt; records travel encoded."""
        self._in_hand += 1
        try:
            judged = self._scorer.submit(decode(prompt, Prompt), [decode(c, Completion) for c in completions])
            return [encode(trajectory) for trajectory in await asyncio.wrap_future(judged)]
        finally:
            self._in_hand -= 1

    async def stats(self) -> dict[str, float]:
        """Counts and times, and which process says so."""
        return self._counts() | resident() | {"process/pid": float(os.getpid())}

    def _counts(self) -> dict[str, float]:
        return self._scorer.stats() | {"scorer/in_hand": float(self._in_hand)}


def start_scorer(name: str, log: Path, options: dict[str, Any], arguments: dict[str, Any]) -> Any:
    """A scorer's handle; it is still starting. Ray starts it again as often as the section allows."""
    again = arguments["section"].max_restarts
    actor = ray.remote(ScorerActor).options(max_restarts=again, max_concurrency=64, **options)
    return actor.remote(name, log, **arguments)


def facts_of_process() -> dict[str, Any]:
    """Where an actor runs."""
    return {"pid": os.getpid(), "node": socket.gethostname()}
