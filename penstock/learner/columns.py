"""Responses to the columns of a batch. A batch has thousands of responses and twenty columns, so what can be is laid
out for all at once, and not in an array for each."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np

from penstock.learner.batch import DTYPES, Array, Batch
from penstock.services.contracts import PenstockError
from penstock.services.trajectory import Group, Mask, Trajectory
from penstock.services.versions import Version


class Columns:
    """Columns that grow by one response at a time."""

    def __init__(self, with_reference: bool, lag_of: Callable[[Version], int]) -> None:
        """`with_reference`: every scored response has reference log-probs. `lag_of`: of a version that sampled."""
        self._with_reference, self._lag_of = with_reference, lag_of
        self._added: list[tuple[Group, int, Trajectory]] = []
        self._tokens: dict[str, list[Array]] = {"mask": [], "token_rewards": [], "advantages": []}

    def add(
        self, group: Group, member: int, trajectory: Trajectory, mask: Mask, token_rewards: Array, advantages: Array
    ) -> None:
        """One response, and what was made of each of its tokens, [T]."""
        self._added.append((group, member, trajectory))
        for name, column in zip(self._tokens, (mask, token_rewards, advantages), strict=True):
            self._tokens[name].append(column)

    def batch(self) -> Batch:
        """All of them as one batch. Raises PenstockError when some have what others lack."""
        pieces = {**self._tokens, **self._sampled(), **self._recorded()}
        columns = {name: np.concatenate(each or [np.zeros(0)]) for name, each in pieces.items()}
        columns |= self._spans() | self._rows()
        typed = {name: column.astype(DTYPES[name], copy=False) for name, column in columns.items()}
        return Batch(**typed, weights=np.zeros(len(self._added), np.float64))

    def _sampled(self) -> dict[str, list[Array]]:
        return {
            "prompt_tokens": [group.prompt.tokens for group, _, _ in self._added],
            "tokens": [t.completion.tokens for _, _, t in self._added],
            "logp_sampler": [t.completion.logprobs for _, _, t in self._added],
        }

    def _spans(self) -> dict[str, Array]:
        """What is the same for all tokens of a span."""
        spans = list(chain.from_iterable(t.completion.spans for _, _, t in self._added))
        counts = [span.count for span in spans]
        each: dict[str, list[int]] = {
            "older_kv": [span.older_kv for span in spans],
            "sampled_lineages": [span.lineage for span in spans],
            "sampled_steps": [span.step for span in spans],
            "lags": [self._lag_of(span.version) for span in spans],
        }
        return {name: np.repeat(np.asarray(values, DTYPES[name]), counts) for name, values in each.items()}

    def _rows(self) -> dict[str, Array]:
        """One value for each response."""
        each: dict[str, list[object]] = {
            "prompt_lengths": [len(group.prompt.tokens) for group, _, _ in self._added],
            "lengths": [len(t.completion.tokens) for _, _, t in self._added],
            "temperatures": [group.sampling.temperature for group, _, _ in self._added],
            "groups": [group.prompt.index for group, _, _ in self._added],
            "members": [member for _, member, _ in self._added],
            "rewards": [t.task_reward for _, _, t in self._added],
            "truncated": [t.completion.finish == "length" for _, _, t in self._added],
        }
        return {name: np.asarray(values, DTYPES[name]) for name, values in each.items()}

    def _recorded(self) -> dict[str, list[Array]]:
        """What only some runs record; a run has it of all its responses, or of none."""
        completions = [t.completion for _, _, t in self._added]
        kept = [c.kept for c in completions if c.kept is not None]
        routed = [(r, (-1, r.layers, r.top_k)) for c in completions if (r := c.routing) is not None]
        references = [t.reference_logprobs for _, _, t in self._added if t.reference_logprobs is not None]
        found: dict[str, list[Array]] = {
            "logp_reference": references if self._with_reference else [],
            "kept_counts": [each.counts for each in kept],
            "kept_tokens": [each.tokens for each in kept],
            "experts": [each.answer.reshape(shape) for each, shape in routed],
            "prompt_experts": [each.prompt.reshape(shape) for each, shape in routed],
        }
        for name, pieces in found.items():
            if pieces and len(pieces) != len(self._added):
                raise PenstockError(
                    f"{len(pieces)} of {len(self._added)} responses came with {name} and the others without: workers "
                    "of different settings have filled this batch"
                )
        return {name: pieces for name, pieces in found.items() if pieces}
