"""Some answers of a step for people to read: picked before it is made, told with what it made of their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from penstock.learner import exhibit
from penstock.learner.assemble import Moment
from penstock.services import samples
from penstock.services.samples import SpanRecord, Texts, TokenRecord
from penstock.services.staleness import lag
from penstock.services.trajectory import Group, Trajectory
from penstock.services.versions import Version

if TYPE_CHECKING:
    from penstock.learner.batch import Array, Batch
    from penstock.learner.crew import Trained
    from penstock.learner.deal import Share

NO_REFERENCE = "the run has no reference model"
NOT_TRAINED_ON = "the step was not trained on this answer: it is unscored, or has no token that counts"
_OF_THE_STEP = ("logp_learner", "advantages", "trust_weights", "token_rewards")
_OF_ACTIONS = ("logp_sampler", "logp_learner", "logp_reference", "trust_weights")
"""Columns that mean nothing beside a token that the policy did not choose."""

Key = tuple[int, int]
"""An answer: index of its prompt, place in its group."""


@dataclass(frozen=True)
class Showcase:
    """How many answers of which steps are shown, and how much of each."""

    answers: int
    every: int
    """Of every so many steps."""
    tokens: int
    """Of one answer, with their numbers; 0 shows it as text alone."""
    seed: int
    texts: Texts | None = None

    def pick(self, groups: Sequence[Group], version: Version) -> list[tuple[Group, int]]:
        """(group, member) of the answers to show of the step that will end in `version`."""
        if version.step % self.every:
            return []
        random = np.random.default_rng([self.seed, version.step])
        choices = [(group, member) for group in groups for member in range(len(group.trajectories))]
        chosen = random.choice(len(choices), size=min(self.answers, len(choices)), replace=False)
        return [choices[i] for i in sorted(int(i) for i in chosen)]

    def rows(self, picked: Sequence[tuple[Group, int]], batch: Batch) -> list[int]:
        """The rows of the batch in which the picked answers are; none where no tokens are shown."""
        wanted = {(group.prompt.index, member) for group, member in picked} if self.tokens else set()
        keys = zip(batch.groups.tolist(), batch.members.tolist(), strict=True)
        return [row for row, key in enumerate(keys) if key in wanted]

    def samples(
        self, picked: Sequence[tuple[Group, int]], moment: Moment, shares: Sequence[Share], trained: Trained
    ) -> list[dict[str, Any]]:
        """The picked answers as plain values, when the step has been made."""
        found = _by_answer(shares, trained)
        told = []
        for group, member in picked:
            sample = readable(group, member)
            if self.tokens:
                of_step = found.get((group.prompt.index, member))
                record = record_of(group.trajectories[member], moment, of_step, self.tokens, self.texts)
                sample["by_token"] = msgspec.to_builtins(record)
            told.append(sample)
        return told


def readable(group: Group, member: int) -> dict[str, Any]:
    """A whole prompt and answer as text, with how it came about and what it earned."""
    trajectory = group.trajectories[member]
    completion = trajectory.completion
    return {
        "prompt_index": group.prompt.index,
        "member": member,
        "source": group.prompt.source,
        "prompt": group.prompt.text,
        "answer": completion.text,
        "reward": trajectory.reward,
        "parts": trajectory.parts,
        "steps": [[step.token, step.score] for step in trajectory.steps],
        "unscored": trajectory.unscored,
        "finish": completion.finish,
        "tokens": len(completion.tokens),
        "logprob_mean": float(completion.logprobs[completion.actions].mean()) if completion.actions.any() else None,
        "versions": [f"{span.version}:{span.count}" for span in completion.spans],
        "worker": completion.worker,
        "seconds": completion.ended - completion.started,
    }


def record_of(
    trajectory: Trajectory, moment: Moment, of_step: Mapping[str, Array] | None, at_most: int, texts: Texts | None
) -> TokenRecord:
    """An answer token by token. `of_step`: what the train step made of it; None when it was not trained on."""
    completion = trajectory.completion
    columns: dict[str, Array] = {"tokens": completion.tokens, "logp_sampler": completion.logprobs}
    missing: dict[str, str] = {}
    if trajectory.reference_logprobs is not None:
        columns["logp_reference"] = trajectory.reference_logprobs
    else:
        missing["logp_reference"] = NO_REFERENCE
    if of_step is None:
        missing |= dict.fromkeys(_OF_THE_STEP, NOT_TRAINED_ON)
    columns |= of_step or {}
    for name in _OF_ACTIONS:
        if name in columns:
            columns[name] = np.where(completion.actions, columns[name], np.nan)
    columns["marks"] = completion.actions * samples.ACTION | columns.get("marks", np.uint8(0))
    return TokenRecord(
        length=len(completion.tokens),
        begins_at=str(moment.now),
        spans=[_span(span.version, span.count, span.older_kv, moment) for span in completion.spans],
        stretches=samples.stretches(columns, texts, at_most),
        missing=missing,
    )


def _span(version: Version, count: int, older_kv: bool, moment: Moment) -> SpanRecord:
    return SpanRecord(version=str(version), count=count, lag=lag(moment.now, version, moment.forks), older_kv=older_kv)


def _by_answer(shares: Sequence[Share], trained: Trained) -> dict[Key, dict[str, Array]]:
    """What the ranks say of the shown rows, and the rewards of their tokens."""
    found: dict[Key, dict[str, Array]] = {}
    for share, payload in zip(shares, trained.shown, strict=False):
        batch, ends = share.batch, np.cumsum(share.batch.lengths)
        told = exhibit.split(payload, [int(batch.lengths[row]) for row in share.shown])
        for row, columns in zip(share.shown, told, strict=True):
            rewards = batch.token_rewards[ends[row] - batch.lengths[row] : ends[row]]
            found[int(batch.groups[row]), int(batch.members[row])] = columns | {"token_rewards": rewards}
    return found
