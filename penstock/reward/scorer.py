"""Judge the answers to one prompt: run the rules, add up the reward, ask the reference model.

Implements `contracts.Scorer`. A rule that fails leaves its answers unscored with the cause; only a reference
model that fails is an error, because nothing could be trained without it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from penstock.reward import wire
from penstock.reward.config import RewardSection
from penstock.reward.sandbox import Sandbox
from penstock.services.data import RAW_PROMPT
from penstock.services.trajectory import Completion, Floats, Prompt, StepScore, Trajectory


class Reference(Protocol):
    """Log-probabilities under a frozen model; see `reference.ReferenceScorer`."""

    def submit(self, prompt: Prompt, completions: Sequence[Completion]) -> Future[list[Floats]]: ...

    @property
    def tokens_per_second(self) -> float: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Judged:
    """The rules' verdict on one answer."""

    reward: float | None
    parts: dict[str, float | None]
    unscored: str | None
    steps: tuple[StepScore, ...] = ()
    """With the weight of the part that gave them."""


class GroupScorer:
    """The rules of a reward section, and the reference model where a run uses one.

    Groups are judged side by side, as many as there are rule processes. Raises RewardError when a rule cannot
    be had. `reference` is closed with the scorer.
    """

    def __init__(self, section: RewardSection, reference: Reference | None = None) -> None:
        self._weights = {part: rule.weight for part, rule in section.rules.items()}
        self._sandbox = Sandbox(section)
        self._reference = reference
        self._threads = ThreadPoolExecutor(section.workers, "scorer")
        self._lock = threading.Lock()
        self._groups = 0
        self._seconds = 0.0
        self._failed: Counter[str] = Counter()

    def submit(self, prompt: Prompt, completions: Sequence[Completion]) -> Future[tuple[Trajectory, ...]]:
        """Start judging; the future holds one trajectory per completion, in order.

        It raises what the reference model raised, and an error when the scorer is closed before the group is done.
        """
        started = time.monotonic()
        members = tuple(completions)
        result: Future[tuple[Trajectory, ...]] = Future()
        result.set_running_or_notify_cancel()
        judged = self._threads.submit(self._judge, prompt, members)
        reference = self._reference.submit(prompt, members) if self._reference else None

        def finish(_: object) -> None:
            try:
                logprobs = reference.result() if reference else [None] * len(members)
                trajectories = tuple(map(_trajectory, members, judged.result(), logprobs))
            except BaseException as error:  # noqa: BLE001  belongs to whoever waits for the future
                result.set_exception(error)
                return
            with self._lock:
                self._groups += 1
                self._seconds += time.monotonic() - started
            result.set_result(trajectories)

        # The later of the two calls `finish`: a callback added to a future that is done runs at once.
        judged.add_done_callback(lambda _: reference.add_done_callback(finish) if reference else finish(None))
        return result

    def _judge(self, prompt: Prompt, completions: tuple[Completion, ...]) -> list[Judged]:
        """All parts in their order, one call each for the whole group."""
        columns = dict(prompt.columns)
        raw = columns.pop(RAW_PROMPT, prompt.text)
        texts = [c.text for c in completions]
        chat = not isinstance(raw, str)
        entries: dict[str, list[wire.Entry]] = {}
        for part in self._weights:
            entries[part] = self._sandbox.call(
                wire.Call(
                    part=part,
                    prompt=raw,
                    completions=[[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
                    completion_ids=[c.tokens.tolist() for c in completions],
                    columns=columns,
                    parts={name: [_value(e) for e in found] for name, found in entries.items()},
                )
            )
            failures = sum(isinstance(entry, str) for entry in entries[part])
            if failures:
                with self._lock:
                    self._failed[part] += failures
        return [
            add_up(self._weights, {part: found[i] for part, found in entries.items()}) for i in range(len(completions))
        ]

    def stats(self) -> dict[str, float]:
        """Counts since the scorer started, and mean times; names as in `reward.metrics`."""
        with self._lock:
            values: dict[str, float] = {"scorer/groups": self._groups}
            if self._groups:
                values["scorer/seconds"] = self._seconds / self._groups
            values |= {f"scorer/failed/{part}": self._failed[part] for part in self._weights}
        values["scorer/restarts"] = self._sandbox.restarts.total()
        if self._reference:
            values["scorer/reference_tokens_per_second"] = self._reference.tokens_per_second
        return values

    def close(self) -> None:
        """End all processes and threads; groups not begun are cancelled. May be repeated."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._sandbox.close()
        self._threads.shutdown(wait=True)
        if self._reference:
            self._reference.close()


def _value(entry: wire.Entry) -> float | None:
    if isinstance(entry, wire.Stepwise):
        return entry.reward
    return None if isinstance(entry, str) else entry


def add_up(weights: dict[str, float], entries: dict[str, wire.Entry]) -> Judged:
    """The weighted sum of one answer's parts. A part that abstains adds nothing.

    The answer is unscored when a part with a weight failed, when two of them judged its steps, or when all of them
    abstained. One whose steps alone were judged has a reward of 0 beside them.
    """
    parts = {part: _value(entry) for part, entry in entries.items()}
    counted = [part for part, weight in weights.items() if weight]
    for part in counted:
        if isinstance(entry := entries[part], str):
            return Judged(None, parts, f"reward {part!r}: {entry}")
    stepwise = {part: entry.steps for part in counted if isinstance(entry := entries[part], wire.Stepwise)}
    if len(stepwise) > 1:
        names = " and ".join(map(repr, stepwise))
        return Judged(None, parts, f"rewards {names} both judge steps; give all of them but one a weight of 0")
    given = [(weights[part], value) for part in counted if (value := parts[part]) is not None]
    if not given and not stepwise:
        return Judged(None, parts, "every rule abstained")
    steps = tuple(
        StepScore(token=token, score=weights[part] * score) for part, ends in stepwise.items() for token, score in ends
    )
    return Judged(float(sum(weight * value for weight, value in given)), parts, None, steps)


def _trajectory(completion: Completion, judged: Judged, reference: Floats | None) -> Trajectory:
    return Trajectory(
        completion=completion,
        reward=judged.reward,
        parts=judged.parts,
        unscored=judged.unscored,
        reference_logprobs=reference,
        steps=judged.steps,
    )
