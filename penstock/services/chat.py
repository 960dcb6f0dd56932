"""Prompts and answers as text and as token ids: the chat template is applied here and nowhere else.

Prompt and response are tokenised apart, as they are when a model generates: joined text could merge tokens
across the boundary, and the model would be trained on a prompt it never sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import xxhash

from penstock.services.contracts import PenstockError
from penstock.services.data_config import DataSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


class ChatError(PenstockError):
    """A prompt or conversation that cannot become text; the caller adds source and row."""

    def __init__(self, problem: str, key: str = "") -> None:
        super().__init__(problem)
        self.key = key
        """In the data section, where what stands there is the mistake."""


class Renderer:
    """A tokenizer and the settings of the data section that shape text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, section: DataSection) -> None:
        self._tokenizer = tokenizer
        self._system = section.system
        self._args = dict(section.template_args)
        has = bool(tokenizer.chat_template)
        if section.chat_template == "always" and not has:
            raise ChatError(
                "chat_template: always, but the tokenizer has no chat template; set model.chat_template",
                "chat_template",
            )
        self.templated = has and section.chat_template != "never"
        if section.system and not self.templated:
            raise ChatError(
                "data.system needs a chat template, and none is applied to this run's prompts; set model.chat_template",
                "system",
            )
        # A tokenizer that begins every text with a token (BOS) says so when it encodes nothing.
        self._begin: list[int] = list(tokenizer("").input_ids)[:1]
        if self._begin != [tokenizer.bos_token_id]:
            self._begin = []

    def fingerprint(self) -> str:
        """Differs whenever the same row could become other token ids."""
        tokenizer = self._tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        body = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
        settings = [self.templated, tokenizer.chat_template, self._system, self._args, self._begin]
        return xxhash.xxh3_128_hexdigest(repr([body, tokenizer.eos_token_id, settings]).encode())

    def prompt(self, raw: Any, system: str | None = None) -> tuple[Any, str]:
        """(the prompt without empty keys, the text that its tokens are made from)."""
        clean = raw if isinstance(raw, str) else _messages(raw)
        if not self.templated:
            return clean, _plain(clean)
        if not isinstance(clean, str) and clean[-1]["role"] == "assistant":
            raise ChatError("the conversation ends with the assistant's answer; a prompt ends before it")
        return clean, self._render(self._conversation(clean, system), generate=True)

    def pair(self, raw: Any, response: Any, system: str | None = None) -> list[str]:
        """[prompt text, response text]. Without `response`, the last message of `raw` is the answer."""
        clean = raw if isinstance(raw, str) else _messages(raw)
        if response is None:
            if isinstance(clean, str) or len(clean) < 2 or clean[-1]["role"] != "assistant":
                raise ChatError("no answer to imitate: expected a conversation whose last message is the assistant's")
            clean, response = clean[:-1], clean[-1]["content"]
        if not isinstance(response, str):
            raise ChatError(f"the response: expected a string, found {type(response).__name__}")
        if not self.templated:
            return [_plain(clean), response]
        conversation = self._conversation(clean, system)
        prompt = self._render(conversation, generate=True)
        whole = self._render([*conversation, {"role": "assistant", "content": response}], generate=False)
        if not whole.startswith(prompt):
            raise ChatError(
                "the chat template does not write a conversation as its prompt followed by the answer "
                f"(prompt ends {prompt[-40:]!r}); use another model.chat_template, or chat_template: never"
            )
        return [prompt, whole[len(prompt) :]]

    def encode(self, texts: Sequence[str], closed: Sequence[bool]) -> list[list[int]]:
        """Token ids of prompts (`closed` False) and of responses (True): these end with end-of-sequence once."""
        end = self._tokenizer.eos_token_id
        found: list[list[int]] = []
        for ids, ends in zip(self._tokenizer(list(texts), add_special_tokens=False).input_ids, closed, strict=True):
            if ends:
                found.append([*ids[: ids.index(end)], end] if end in ids else [*ids, end])
            else:
                found.append(list(ids) if self.templated else self._begin + list(ids))
        return found

    def _conversation(self, prompt: str | list[Message], system: str | None) -> list[Message]:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        first = system if system is not None else self._system
        if first is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": first}, *messages]

    def _render(self, messages: list[Message], generate: bool) -> str:
        import jinja2

        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generate, **self._args
            )
        except jinja2.TemplateError as error:
            raise ChatError(f"the chat template refuses this conversation: {error}") from error
        return str(text)


def _plain(prompt: str | list[Message]) -> str:
    if not isinstance(prompt, str):
        raise ChatError(
            "the prompt is a list of messages, which needs a chat template; the tokenizer has none in use; "
            "set model.chat_template"
        )
    if not prompt:
        raise ChatError("the prompt is empty")
    return prompt


def _messages(raw: Any) -> list[Message]:
    """Messages with a role and text; keys that Arrow filled with null are left out."""
    if not isinstance(raw, list) or not raw:
        found = "an empty list" if raw == [] else type(raw).__name__
        raise ChatError(f"the prompt: expected a string or a list of messages, found {found}")
    messages: list[Message] = []
    for i, message in enumerate(raw):
        if not isinstance(message, dict):
            raise ChatError(f"message {i}: expected an object with role and content, found {type(message).__name__}")
        clean = {key: value for key, value in message.items() if value is not None}
        for key in ("role", "content"):
            if not isinstance(clean.get(key), str):
                raise ChatError(f"message {i}: {key!r} must be a string, found {type(clean.get(key)).__name__}")
        messages.append(clean)
    return messages
