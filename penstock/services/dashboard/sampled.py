"""Answers in `samples/`: a few of every recorded step, with their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from penstock.services.dashboard.answers import Answer, NotRecorded, Piece, Recorded, excerpt
from penstock.services.rundir import RunDir
from penstock.services.samples import Stretch, TokenRecord
from penstock.services.versions import Version

NO_TOKENS = (
    "the run has recorded the answer as text alone (recording.sample_tokens was 0, or an older Penstock wrote it)"
)


class Samples:
    """The answers of one step."""

    def __init__(self, directory: RunDir, version: Version) -> None:
        """Raises RunDirError where the step has none."""
        self._where = f"step {version.step} of lineage {version.lineage}"
        self._read = directory.read_samples(version.step, version.lineage)

    def __len__(self) -> int:
        return len(self._read)

    def answer(self, index: int) -> Answer:
        """For a list."""
        sample = self._read[index]
        return Answer(
            index=index,
            prompt_index=sample.get("prompt_index"),
            member=sample.get("member"),
            source=sample.get("source", ""),
            prompt=excerpt(sample.get("prompt", "")),
            answer=excerpt(sample.get("answer", "")),
            reward=sample.get("reward"),
            parts=sample.get("parts", {}),
            unscored=sample.get("unscored"),
            finish=sample.get("finish", ""),
            tokens=sample.get("tokens", 0),
            versions=sample.get("versions", []),
            worker=sample.get("worker", ""),
            token_by_token="by_token" in sample,
        )

    def recorded(self, index: int) -> Recorded:
        """Raises NotRecorded where the answer is there as text alone, or written otherwise."""
        sample = self._read[index]
        if "by_token" not in sample:
            raise NotRecorded(f"answer {index} of {self._where}: {NO_TOKENS}")
        try:
            record = msgspec.convert(sample["by_token"], TokenRecord)
        except msgspec.ValidationError as error:
            raise NotRecorded(
                f"answer {index} of {self._where} was written by another version of Penstock: {error}"
            ) from error
        pieces = [_piece(stretch) for stretch in record.stretches]
        return Recorded(
            self.answer(index),
            sample.get("prompt", ""),
            record.length,
            record.begins_at,
            record.spans,
            pieces,
            record.missing,
        )


def _piece(stretch: Stretch) -> Piece:
    columns: dict[str, NDArray[Any]] = {
        "tokens": np.asarray(stretch.tokens, np.int64),
        "marks": np.asarray(stretch.marks, np.int64),
    }
    for name in _COLUMNS:
        values: Sequence[float | None] | None = getattr(stretch, name)
        if values is not None:
            columns[name] = np.asarray(values, np.float64)  # None becomes NaN
    texts = stretch.texts
    return Piece(stretch.start, columns, lambda begin, end: None if texts is None else texts[begin:end])


_COLUMNS = tuple(name for name in Stretch.__struct_fields__ if name not in ("start", "tokens", "texts", "marks"))
