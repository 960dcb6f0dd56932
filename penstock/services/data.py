"""Rows of datasets as token ids: prompts for reinforcement learning, (prompt, response) pairs for fine-tuning.

A source is tokenised in one pass when it is opened, so that a bad row is found before a run starts and not
hours into it. The ids are kept in the cache folder and memory-mapped: a second process, or a second run, opens
the same source at once and shares its memory.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from penstock.services.chat import ChatError, Renderer
from penstock.services.data_config import DataSection, SourceSection
from penstock.services.data_read import CACHE, DataError, check_columns, nearest, not_text, open_table, place, problems
from penstock.services.trajectory import TokenIds

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

__all__ = ["RAW_PROMPT", "DataError", "PairRow", "PairSource", "PromptRow", "PromptSource"]
__all__ += ["open_pairs", "open_prompts", "problems"]

RAW_PROMPT = "prompt"
"""Column under which a row keeps its prompt as the data has it (string or messages), where the chat template
made another text of it. Reward functions get that one, as they do in TRL."""

_CHUNK = 1024
_LONG_WORK = 20_000  # rows from which a progress bar is worth its lines


@dataclass(frozen=True)
class PromptRow:
    """One prompt of a source, ready to become a `trajectory.Prompt`."""

    source: str
    row: int
    """Row in the dataset as it lies there, counted before too long prompts were left out."""
    tokens: TokenIds
    text: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class PairRow:
    """A prompt and the answer to imitate; the response ends with the end-of-sequence token."""

    source: str
    row: int
    prompt: TokenIds
    response: TokenIds


class _Source(ABC):
    """Tokens of one source, `width` sequences per row, behind the rows they were made from."""

    width: int

    def __init__(
        self, name: str, section: DataSection, tokenizer: PreTrainedTokenizerBase, cache: Path | None = None
    ) -> None:
        self.name = name
        self.section = section.sources[name]
        self._renderer = Renderer(tokenizer, section)
        self._table = open_table(name, self.section, cache)
        missing = check_columns(name, self.section, self._table.column_names, responses=self.width == 2)
        if missing:
            raise DataError("\n".join(text for _, text in missing))
        folder = (cache or CACHE).expanduser() / "tokens" / self._key(section)
        if not folder.is_dir():
            self._tokenise(folder, section)
        self._tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._rows = np.load(folder / "rows.npy", mmap_mode="r")

    @property
    def weight(self) -> float:
        """Share in the mixture, relative to the other sources."""
        return self.section.weight

    @property
    def dropped(self) -> int:
        """Rows left out because their prompt is longer than `max_prompt_tokens`."""
        return len(self._table) - len(self)

    def __len__(self) -> int:
        return len(self._rows)

    def first_longer(self, tokens: int) -> str | None:
        """Where the first prompt longer than `tokens` lies, how many there are, and how long it is, as `FILE line 3
        (row 2), the first of 5: the prompt has 70`; None where there is none."""
        lengths = np.diff(self._offsets)[:: self.width]
        over = np.flatnonzero(lengths > tokens)
        if len(over) == 0:
            return None
        where, _ = place(self.section, int(self._rows[over[0]]))
        of = f", the first of {len(over)}" if len(over) > 1 else ""
        return f"{where}{of}: the prompt has {lengths[over[0]]}"

    def _sequence(self, item: int, which: int) -> TokenIds:
        at = item * self.width + which
        return np.array(self._tokens[self._offsets[at] : self._offsets[at + 1]], np.int32)

    def _key(self, section: DataSection) -> str:
        """Changes with the rows, the tokenizer, its template, and every setting that shapes the ids."""
        columns = self.section.columns.model_dump()
        shape = [self.width, section.max_prompt_tokens, section.too_long, columns, self._renderer.fingerprint()]
        text = repr([self._table._fingerprint, *shape])
        return xxhash.xxh3_128_hexdigest(text.encode())

    def _tokenise(self, folder: Path, section: DataSection) -> None:
        """One pass over all rows into `folder`, complete or not at all."""
        pieces: list[NDArray[np.int32]] = []
        lengths: list[int] = []
        rows: list[int] = []
        for first, chunk in _chunks(self._table, self.name, self.section):
            texts, closed = self._texts(first, chunk)
            ids = self._renderer.encode(texts, closed)
            for i in range(len(chunk)):
                sequences = ids[i * self.width : (i + 1) * self.width]
                if self._fits(len(sequences[0]), first + i, section):
                    rows.append(first + i)
                    lengths += [len(s) for s in sequences]
                    pieces += [np.asarray(s, np.int32) for s in sequences]
        if not rows:
            raise DataError(
                f"source {self.name!r}: all {len(self._table)} prompts are longer than max_prompt_tokens = "
                f"{section.max_prompt_tokens}"
            )
        part = folder.with_name(f".{folder.name}-{os.getpid()}")
        part.mkdir(parents=True, exist_ok=True)
        np.save(part / "tokens.npy", np.concatenate(pieces))
        np.save(part / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
        np.save(part / "rows.npy", np.asarray(rows, np.int64))
        try:
            part.rename(folder)
        except OSError:  # another process was faster, with the same ids
            shutil.rmtree(part)

    def _fits(self, tokens: int, row: int, section: DataSection) -> bool:
        if tokens == 0:
            raise self._bad(row, "the prompt has no tokens")
        if section.max_prompt_tokens is None or tokens <= section.max_prompt_tokens:
            return True
        if section.too_long == "drop":
            return False
        raise self._bad(
            row,
            f"the prompt has {tokens} tokens, max_prompt_tokens allows {section.max_prompt_tokens}; raise it, or set "
            "too_long: drop to leave such rows out",
        )

    @abstractmethod
    def _texts(self, first: int, chunk: list[dict[str, Any]]) -> tuple[list[str], list[bool]]:
        """All texts of a chunk, `width` per row, and which of them end with the end-of-sequence token."""

    def _conversation(self, row: int, values: dict[str, Any]) -> Any:
        """The prompt as the data has it: a string or a list of messages."""
        columns = self.section.columns
        key = columns.messages or columns.prompt
        if values.get(key) is None:
            _, raw = place(self.section, row)
            near = nearest(key, raw) if key not in raw else ""
            raise self._bad(row, f"{key!r} is missing or null; expected a string or a list of messages{near}")
        return values[key]

    def _system(self, values: dict[str, Any]) -> str | None:
        column = self.section.columns.system
        return values[column] if column else None

    def _bad(self, row: int, what: str) -> DataError:
        where, _ = place(self.section, row)
        return DataError(f"source {self.name!r}, {where}: {what}")


class PromptSource(_Source):
    """The prompts of one source: `len` and `[i]`, each a PromptRow.

    Raises DataError when it is opened, for data that is missing, malformed or too long.
    """

    width = 1

    def __getitem__(self, item: int) -> PromptRow:
        row = int(self._rows[item])
        values = self._table[row]
        raw, text = self._render(row, values)
        return PromptRow(self.name, row, self._sequence(item, 0), text, self._columns(row, values, raw, text))

    def _texts(self, first: int, chunk: list[dict[str, Any]]) -> tuple[list[str], list[bool]]:
        return [self._render(first + i, values)[1] for i, values in enumerate(chunk)], [False] * len(chunk)

    def _render(self, row: int, values: dict[str, Any]) -> tuple[Any, str]:
        raw = self._conversation(row, values)
        try:
            return self._renderer.prompt(raw, self._system(values))
        except ChatError as error:
            raise self._bad(row, str(error)) from error

    def _columns(self, row: int, values: dict[str, Any], raw: Any, text: str) -> dict[str, Any]:
        """The row's other columns as plain values, and the prompt itself where its text is not the tokens' text."""
        own = {self.section.columns.messages or self.section.columns.prompt, RAW_PROMPT}
        names = self.section.keep if self.section.keep is not None else [k for k in values if k not in own]
        kept: dict[str, Any] = {} if raw == text else {RAW_PROMPT: raw}
        for key in names:
            try:
                kept[key] = msgspec.to_builtins(values[key])
            except TypeError as error:
                raise self._bad(
                    row, f"column {key!r}: {error}; name the columns that rewards need in sources.{self.name}.keep"
                ) from error
        return kept


class PairSource(_Source):
    """Prompt and response pairs of one source: `len` and `[i]`, each a PairRow. Raises as PromptSource does."""

    width = 2

    def __getitem__(self, item: int) -> PairRow:
        return PairRow(self.name, int(self._rows[item]), self._sequence(item, 0), self._sequence(item, 1))

    def _texts(self, first: int, chunk: list[dict[str, Any]]) -> tuple[list[str], list[bool]]:
        texts: list[str] = []
        for i, values in enumerate(chunk):
            raw = self._conversation(first + i, values)
            column = self.section.columns.response
            response = values[column] if column and not self.section.columns.messages else None
            try:
                texts += self._renderer.pair(raw, response, self._system(values))
            except ChatError as error:
                raise self._bad(first + i, str(error)) from error
        return texts, [False, True] * len(chunk)


def _chunks(table: datasets.Dataset, name: str, section: SourceSection) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(first row, rows) by the thousand, with a progress bar where the work is long."""
    from rich.progress import Progress

    with Progress(transient=True, disable=len(table) < _LONG_WORK) as progress:
        task = progress.add_task(f"tokenising {name}", total=len(table))
        for first in range(0, len(table), _CHUNK):
            try:
                chunk = table[first : first + _CHUNK]
            except UnicodeDecodeError as error:  # Arrow looks at the bytes of text only here
                raise not_text(name, section, error) from error
            count = len(next(iter(chunk.values())))
            yield first, [{key: column[i] for key, column in chunk.items()} for i in range(count)]
            progress.advance(task, count)


def open_prompts(
    section: DataSection, tokenizer: PreTrainedTokenizerBase, cache: Path | None = None
) -> dict[str, PromptSource]:
    """Every source of the section by its name. `cache` defaults to ~/.cache/penstock/data. Raises DataError."""
    return {name: PromptSource(name, section, tokenizer, cache) for name in section.sources}


def open_pairs(
    section: DataSection, tokenizer: PreTrainedTokenizerBase, cache: Path | None = None
) -> dict[str, PairSource]:
    """Every source of the section as pairs for fine-tuning. Raises DataError."""
    return {name: PairSource(name, section, tokenizer, cache) for name in section.sources}
