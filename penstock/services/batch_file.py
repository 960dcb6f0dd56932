"""An archived batch on disk, read a piece at a time by whoever has no learner; `learner/batch.py` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
from numpy.typing import NDArray

FORMAT = "penstock-batch-2"
"""Stands in the file's header; another one is another schema."""


class BatchFile:
    """The columns of a batch, none of which is read before it is asked for, and the facts in its header."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError, and ValueError for what is no batch of this schema."""
        try:
            opened: Any = safetensors.safe_open(str(path), framework="numpy")
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is no batch: {error}") from error
        self._file = opened
        header = opened.metadata() or {}
        if header.get("format") != FORMAT:
            raise ValueError(f"{path}: expected a batch of format {FORMAT}, found {header.get('format')!r}")
        self.facts: dict[str, Any] = json.loads(header["facts"])
        self._names = frozenset(self._file.keys())

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def column(self, name: str) -> NDArray[Any]:
        """All of a column."""
        whole: NDArray[Any] = self._file.get_tensor(name)
        return whole

    def piece(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """The entries `begin` to `end` of a column; the others stay on the disk."""
        part: NDArray[Any] = self._file.get_slice(name)[begin:end]
        return part
