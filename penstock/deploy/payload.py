"""How many bytes a group takes at most: in the store, and as part of an archived step."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.deploy.runfile import RunFile
from penstock.services.model_facts import ModelFacts

TOKEN_BYTES = 8 + 1 + 4 + 8
"""In its group: id and log-prob, action, log-prob of the reference, and text, of which a token is seldom longer."""
TOKEN_COLUMNS = 38
"""In the archived batch: ten columns and the log-prob of the reference, as `Batch` has them."""
ANSWER_BYTES, ANSWER_COLUMNS = 600, 53
"""Beside its tokens: versions, worker, parts of the reward; columns that have one entry per answer."""
PROMPT_BYTES = 1000
"""Beside its tokens, once per group: columns of the data that rewards need."""


@dataclass(frozen=True)
class Payload:
    """The largest group that a run can make."""

    answers: int
    answer_tokens: int
    prompt_tokens: int
    kept: int = 0
    """Ids recorded with one token of an answer at most, of those that top-p and top-k left; 0 where none are."""
    experts: int = 0
    """Experts recorded with one position, over all layers; 0 where they are not."""

    @property
    def group(self) -> int:
        """Bytes of the group as the store and `groups.msgpack` hold it."""
        prompt = PROMPT_BYTES + self.prompt_tokens * (4 + 8)
        return prompt + self.answers * (ANSWER_BYTES + self._answer(TOKEN_BYTES))

    @property
    def columns(self) -> int:
        """Bytes of its answers in `batch.safetensors`, where the prompt is repeated for each."""
        return self.answers * (ANSWER_COLUMNS + 4 * self.prompt_tokens + self._answer(TOKEN_COLUMNS))

    def _answer(self, token: int) -> int:
        """With what is written in the same way to both; routing also of the prompt, for every answer to it."""
        sets = 4 * (self.kept + 1) if self.kept else 0
        return self.answer_tokens * (token + sets) + 2 * self.experts * (self.answer_tokens + self.prompt_tokens)


def payload_of(run: RunFile, model: ModelFacts) -> Payload:
    """Of the groups that a run file asks for."""
    sampling = run.rollout.sampling
    routed = model.layers * (model.experts_used or model.experts) if run.rollout.keep_routing else 0
    return Payload(
        answers=run.rollout.group_size,
        answer_tokens=sampling.max_tokens,
        prompt_tokens=run.data.max_prompt_tokens or run.engine.max_model_len - sampling.max_tokens,
        kept=min(sampling.most_kept, model.vocab),
        experts=routed,
    )
