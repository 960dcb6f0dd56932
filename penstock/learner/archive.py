"""Whole encoded batches kept on disk, with the learner's own log-probs and advantages."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from penstock.learner.batch import Batch, BatchError
from penstock.services.versions import Version

_FILE = "batch.safetensors"


def write(folder: Path, version: Version, batch: Batch, facts: dict[str, Any]) -> Path:
    """The batch of the step that ends in `version`, into `folder`; complete or not there at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / _FILE).write_bytes(batch.to_bytes(version=str(version), **facts))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def read(folder: Path) -> tuple[Version, Batch, dict[str, Any]]:
    """The version that a step ended in, its batch, its facts. Raises BatchError when the folder holds none."""
    file = folder / _FILE
    if not file.is_file():
        raise BatchError(f"{folder} holds no archived batch: {_FILE} is missing")
    batch, facts = Batch.from_bytes(file.read_bytes())
    return Version.parse(facts.pop("version")), batch, facts


def prune(folder: Path, keep_last: int) -> None:
    """Delete all but the newest batches."""
    kept = sorted((p for p in folder.iterdir() if (p / _FILE).is_file()), key=lambda p: (p / _FILE).stat().st_mtime)
    for old in kept[:-keep_last]:
        shutil.rmtree(old)
