"""Answers in `archive/`: all that a step was trained on, as columns; texts where the run's tokenizer is at hand."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penstock.services import samples
from penstock.services.batch_file import BatchFile
from penstock.services.dashboard.answers import (
    EXCERPT,
    PROMPT_CHARACTERS,
    Answer,
    NotRecorded,
    Piece,
    Recorded,
    excerpt,
)
from penstock.services.rundir import RunDir
from penstock.services.samples import SpanRecord
from penstock.services.token_texts import texts_of
from penstock.services.versions import Version

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Array = NDArray[Any]
NOT_ARCHIVED = "the archive does not say what the correction made of the weights; the samples of a step do"
FROM_VALUES = (
    "the row's advantages come from a value model and are computed on the learner's ranks: the archive has none of "
    "them; the samples of a step do"
)
WHITENED = "the row whitens advantages over the tokens of all ranks: the archive has them as they were before that"
_COLUMNS = ("logp_sampler", "logp_learner", "logp_reference", "advantages", "token_rewards")


class Archive:
    """The answers of one archived step."""

    def __init__(self, directory: RunDir, version: Version, tokenizer: Tokenizer | None) -> None:
        """Raises NotRecorded where the step is not there, or no longer."""
        path = directory.archived_batch(version)
        try:
            self._file = BatchFile(path)
        except FileNotFoundError:
            raise NotRecorded(f"step {version.step} is not archived, or no longer: {path} is missing") from None
        except ValueError as error:
            raise NotRecorded(str(error)) from error
        self._tokenizer = tokenizer
        self._begins_at = str(self._file.facts["moment"]["now"])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @cached_property
    def _bounds(self) -> Array:
        """[rows + 1] where the answers begin and end in the columns."""
        return np.concatenate([[0], np.cumsum(self._file.column("lengths"))])

    @cached_property
    def _prompt_bounds(self) -> Array:
        return np.concatenate([[0], np.cumsum(self._file.column("prompt_lengths"))])

    @cached_property
    def _rows(self) -> dict[str, Array]:
        return {name: self._file.column(name) for name in ("groups", "members", "rewards", "truncated")}

    def answer(self, index: int) -> Answer:
        """For a list."""
        begin, end = (int(place) for place in self._bounds[index : index + 2])
        rows = self._rows
        return Answer(
            index=index,
            prompt_index=int(rows["groups"][index]),
            member=int(rows["members"][index]),
            source="",
            prompt=excerpt(self._prompt(index, EXCERPT + 1)),
            answer=excerpt(self._text(self._file.piece("tokens", begin, min(end, begin + EXCERPT + 1)))),
            reward=float(rows["rewards"][index]),
            parts={},
            unscored=None,
            finish="length" if rows["truncated"][index] else "",
            tokens=end - begin,
            versions=[f"{span.version}:{span.count}" for span in self._spans(begin, end)],
            worker="",
            token_by_token=True,
        )

    def recorded(self, index: int) -> Recorded:
        """Everything of one answer."""
        begin, end = (int(place) for place in self._bounds[index : index + 2])
        columns = {name: self._file.piece(name, begin, end) for name in ("tokens", *_COLUMNS) if name in self._file}
        missing = {"trust_weights": NOT_ARCHIVED}
        algorithm = self._file.facts["algorithm"]
        if algorithm["value"]["kind"] != "none":
            del columns["advantages"]
            missing["advantages"] = FROM_VALUES
        elif algorithm["whitening"]["over"] == "tokens":
            missing["advantages"] = WHITENED
        if "logp_reference" not in columns:
            missing["logp_reference"] = "the run has no reference model"
        if self._tokenizer is None:
            missing["texts"] = "the run's tokenizer is not on this machine"
        columns["marks"] = self._marks(begin, end)
        piece = Piece(0, columns, lambda first, last: self._texts(columns["tokens"][first:last]))
        about, prompt = self.answer(index), self._prompt(index, PROMPT_CHARACTERS)
        return Recorded(about, prompt, end - begin, self._begins_at, self._spans(begin, end), [piece], missing)

    def _marks(self, begin: int, end: int) -> Array:
        counts, older = self._file.piece("mask", begin, end), self._file.piece("older_kv", begin, end)
        # Whether a token that does not count was an action is not archived.
        marks: Array = counts * (samples.ACTION | samples.COUNTS) + older * samples.OLDER_KV
        return marks

    def _spans(self, begin: int, end: int) -> list[SpanRecord]:
        names = ("sampled_lineages", "sampled_steps", "lags", "older_kv")
        table = np.stack([self._file.piece(name, begin, end).astype(np.int64) for name in names])
        changes = np.flatnonzero((np.diff(table) != 0).any(axis=0)) + 1
        return [
            SpanRecord(
                version=str(Version(*part[:2, 0].tolist())),
                count=part.shape[1],
                lag=int(part[2, 0]),
                older_kv=bool(part[3, 0]),
            )
            for part in np.split(table, changes, axis=1)
        ]

    def _prompt(self, index: int, most: int) -> str:
        """Its last tokens, as many as there may be characters: what was asked stands at the end."""
        begin, end = (int(place) for place in self._prompt_bounds[index : index + 2])
        return self._text(self._file.piece("prompt_tokens", max(begin, end - most), end))

    def _text(self, tokens: Array) -> str:
        if self._tokenizer is None:
            return " ".join(map(str, tokens.tolist()))
        text: str = self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        return text

    def _texts(self, tokens: Array) -> list[str] | None:
        return None if self._tokenizer is None else texts_of(self._tokenizer, tokens.tolist())
