"""The section of a run file that says where prompts and answers come from and how they become tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from penstock.services.metrics import check_word
from penstock.services.model_config import locate
from penstock.services.settings import Section

Format = Literal["auto", "jsonl", "parquet", "disk", "hub"]


class Columns(Section):
    """Which columns of a dataset mean what."""

    prompt: str = "prompt"
    """Column with the prompt: a string, or a list of chat messages with `role` and `content`."""
    response: str | None = None
    """Column with the answer to imitate, for supervised fine-tuning."""
    messages: str | None = None
    """Column with a whole conversation, used instead of `prompt` and `response`: for fine-tuning its last message
    is the assistant's answer, for reinforcement learning it ends before the assistant's turn."""
    system: str | None = None
    """Column with a system message for the row; it wins over the `system` text of the section."""


class SourceSection(Section):
    """One dataset of the mixture: local files or an id on the hub."""

    path: str = Field(min_length=1)
    """A .jsonl or .parquet file, a folder of such files, a folder written by `save_to_disk`, or a hub id."""
    format: Format = "auto"
    """What `path` is: jsonl, parquet, disk (written by `save_to_disk`) or hub; auto looks."""
    subset: str | None = None
    """Configuration of a hub dataset, for example `main` of `openai/gsm8k`."""
    split: str = "train"
    """Split of a hub dataset, where slices such as `train[:1000]` work, or of a saved one. Plain files have none."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset; a commit makes the run repeatable."""
    columns: Columns = Columns()
    """Which columns mean what."""
    keep: tuple[str, ...] | None = None
    """Columns handed to reward functions and stored with every prompt; by default all others of the row."""
    weight: float = Field(1.0, gt=0)
    """Share of this source in the mixture, relative to the others. Above 0: leave a source out to not use it."""
    limit: int | None = Field(None, ge=1)
    """Use only the first so many rows."""

    def located(self, base: Path) -> SourceSection:
        """The same section with its path absolute, so that processes with another working directory agree."""
        absolute = locate(self.path, base)
        return self if self.format == "hub" else self.model_copy(update={"path": absolute})


class DataSection(Section):
    """Datasets, their mixture, and how rows become tokens."""

    sources: dict[str, SourceSection] = Field(min_length=1)
    """Datasets by a name of your choice, made of letters, digits, `_`, `.` and `-`; it appears in samples and in
    metrics' names."""
    epochs: int | None = Field(None, ge=1)
    """How often every source may be read through; by default without end."""
    at_end: Literal["drop", "stop"] = "drop"
    """When a source has been read `epochs` times: `drop` goes on with the other sources, `stop` ends the stream."""
    shuffle: bool = True
    """Draw the rows of each epoch in a random order of their own."""
    seed: int = Field(0, ge=0)
    """Seed of the order and of the mixture."""
    system: str | None = None
    """System message before every conversation that has none of its own."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """auto applies the tokenizer's chat template when it has one; always demands one; never uses plain text."""
    template_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the chat template, for example `enable_thinking: false`."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Longest prompt in tokens; by default any."""
    too_long: Literal["error", "drop"] = "error"
    """What happens to longer prompts: `error` stops before the run starts, `drop` leaves them out and counts them."""

    @field_validator("sources")
    @classmethod
    def _names_fit_metrics(cls, sources: dict[str, SourceSection]) -> dict[str, SourceSection]:
        for name, source in sources.items():
            example = re.sub(r"[^A-Za-z0-9_]+", "_", name.rpartition("/")[2]).strip("_") or "my_source"
            check_word(name, f'give the source a plain name: sources: {{{example}: {{path: "{source.path}"}}}}')
        return sources

    def located(self, base: Path) -> DataSection:
        """The same section with all paths absolute."""
        return self.model_copy(update={"sources": {name: s.located(base) for name, s in self.sources.items()}})
