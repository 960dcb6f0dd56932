"""Which tokens end an answer: of the model, and of the run file's stop texts."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from penstock.rollout.config import SamplingSection
from penstock.services.models import read_config
from penstock.services.trajectory import Sampling


class Encoder(Protocol):
    """The part of a tokenizer that is needed here."""

    @property
    def eos_token_id(self) -> Any: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


def sampling_of(section: SamplingSection, tokenizer: Encoder) -> Sampling:
    """What the run file says, in tokens. Raises ValueError for a stop text that is not one token.

    A text of several tokens cannot be found by looking at token ids: other tokens may spell it too, and the
    answer would end in the middle of one.
    """
    ids = []
    for text in section.stop:
        found = tokenizer.encode(text, add_special_tokens=False)
        if len(found) != 1:
            raise ValueError(
                f"rollout.sampling.stop: {text!r} is {len(found)} tokens of this tokenizer, {found}; only texts of one "
                "token can stop an answer. Use one of its tokens, or max_tokens"
            )
        ids += found
    return Sampling(
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        max_tokens=section.max_tokens,
        stop_token_ids=tuple(ids),
    )


def end_tokens(model: str, tokenizer: Encoder, revision: str | None = None) -> tuple[int, ...]:
    """Ids that end every answer: the tokenizer's, those of the model's configuration and of its generation
    configuration, sorted. Chat models often end a turn and a text with different tokens. Raises ModelError."""
    config = read_config(model, revision)
    named = [tokenizer.eos_token_id, config.get("eos_token_id"), config.get("text_config", {}).get("eos_token_id")]
    named.append(_generation_config(model, revision).get("eos_token_id"))
    ids: set[int] = set()
    for each in named:
        ids.update(each if isinstance(each, list) else [] if each is None else [each])
    return tuple(sorted(ids))


def _generation_config(model: str, revision: str | None) -> dict[str, Any]:
    """generation_config.json of a directory or hub id; empty where there is none, which is common."""
    file = Path(model) / "generation_config.json"
    if not Path(model).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        with suppress(EntryNotFoundError):
            file = Path(hf_hub_download(model, "generation_config.json", revision=revision))
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found
