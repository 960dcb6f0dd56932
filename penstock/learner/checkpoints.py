"""Checkpoints on disk: how a folder is named, what its manifest says, which ones are kept.

checkpoints/step-000040-lineage-0/
    manifest.json        written last; a folder without it is no checkpoint
    deepspeed/           the engine's state, one part per rank
    critic/deepspeed/    that of a value model with a backbone of its own
    model/               the weights in Hugging Face format (optional)
checkpoints/latest       name of the newest
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from penstock.services.contracts import PenstockError
from penstock.services.replay import LedgerMemo
from penstock.services.run_paths import step_name
from penstock.services.staleness import Forks, common_step
from penstock.services.versions import Version

_FORMAT = 1
_LATEST = "latest"
_MANIFEST = "manifest.json"
_REPLACED = ".replaced"
UNRATED = 2
"""How many checkpoints, besides the newest ones, wait for their evaluation."""


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint."""

    folder: Path
    version: Version
    memo: LedgerMemo
    """What the ledger was at that version."""
    metrics: Mapping[str, float]
    ranks: int
    zero_stage: int
    dtype: str
    config_hash: str
    updates: int
    tokens: int
    """Response tokens trained on so far."""
    coefficients: Mapping[str, float]
    """Those that adapt or were turned, by name as in `dials`, as the next step takes them."""
    began: Mapping[str, float]
    """What the run file said of every coefficient that may be turned."""
    written: float
    """Unix seconds."""

    @property
    def model(self) -> Path:
        """The Hugging Face folder in it, if the run writes one."""
        return self.folder / "model"


def folder_of(root: Path, version: Version) -> Path:
    """Where the checkpoint of `version` lies."""
    return root / step_name(version)


def partial_of(root: Path, version: Version) -> Path:
    """Where it is written before it is complete."""
    folder = folder_of(root, version)
    return folder.with_name(f".{folder.name}.writing")


def begin(root: Path, version: Version) -> Path:
    """An empty folder for the parts of a checkpoint; what an interrupted attempt left there is gone."""
    partial = partial_of(root, version)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def remove_unfinished(root: Path) -> None:
    """Delete what a learner that has died was writing or deleting. Only while nobody else writes into `root`."""
    counted = {folder.name for folder in _complete(root)}
    for pattern in (".*.writing", ".*.deleting", f".step-*{_REPLACED}"):
        for left in root.glob(pattern):
            if left.is_dir() and left.name not in counted:
                shutil.rmtree(left)


def seal(
    root: Path,
    version: Version,
    memo: LedgerMemo,
    metrics: Mapping[str, float],
    facts: Mapping[str, Any],
) -> Checkpoint:
    """Make the checkpoint whose parts lie in `partial_of` a complete one, in one rename, and the latest.

    `facts`: ranks, zero_stage, dtype, config_hash, updates, tokens, coefficients, began.
    """
    partial, folder = partial_of(root, version), folder_of(root, version)
    # DeepSpeed leaves scripts of its own beside its state, which unpickle whatever they find; `model/` is for reading.
    for script in partial.rglob("zero_to_*.py"):
        script.unlink()
    manifest = {
        "format": _FORMAT,
        "version": str(version),
        "ledger": memo.as_dict(),
        "metrics": _finite(metrics),
        "written": time.time(),
        **facts,
    }
    _write(partial / _MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
    # The files must be on disk before the name is: a checkpoint that is committed must survive a power cut.
    for file in partial.rglob("*"):
        _sync(file)
    # One of the same version, with other coefficients, counts until this one has its name.
    before = _replaced(folder)
    if folder.exists():
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
    partial.rename(folder)
    _sync(root)
    shutil.rmtree(before, ignore_errors=True)
    _write(root / _LATEST, folder.name)
    return read(folder)


def read(folder: Path) -> Checkpoint:
    """A checkpoint by its folder. Raises PenstockError that names what is missing and what is there instead."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["format"] != _FORMAT:
            raise PenstockError(f"{folder} has format {manifest['format']}, this build reads format {_FORMAT}")
        return Checkpoint(
            folder=folder,
            version=Version.parse(manifest["version"]),
            memo=LedgerMemo.from_dict(manifest["ledger"]),
            **{k: manifest[k] for k in ("metrics", "ranks", "zero_stage", "dtype", "config_hash", "updates")},
            tokens=manifest["tokens"],
            coefficients=manifest.get("coefficients", {}),
            began=manifest.get("began", {}),
            written=manifest["written"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        there = ", ".join(other.name for other in _complete(folder.parent) if other != folder)
        raise PenstockError(
            f"{folder} is no complete checkpoint ({type(error).__name__}: {error}); beside it: {there or 'none'}"
        ) from error


def find(root: Path) -> list[Checkpoint]:
    """All complete checkpoints, oldest version first. Half-written ones are not among them, nor what is deleted by
    another process at this moment. Raises PenstockError for a damaged one."""
    found = []
    for folder in _complete(root):
        try:
            found.append(read(folder))
        except PenstockError:
            if (folder / _MANIFEST).is_file():
                raise
    return sorted(found, key=lambda c: c.version)


def _complete(root: Path) -> list[Path]:
    """Folders that have a manifest; of a version that was being replaced when its process died, the one before."""
    named = sorted(p.parent for p in root.glob(f"step-*/{_MANIFEST}"))
    before = (p.parent for p in root.glob(f".step-*{_REPLACED}/{_MANIFEST}"))
    return named + [folder for folder in before if folder.name[1 : -len(_REPLACED)] not in {n.name for n in named}]


def _replaced(folder: Path) -> Path:
    """Where a checkpoint is while another of its version takes its place."""
    return folder.with_name(f".{folder.name}{_REPLACED}")


def latest(root: Path) -> Checkpoint | None:
    """The newest complete checkpoint: the highest version, counted lineage first."""
    found = find(root)
    return found[-1] if found else None


def last_until(root: Path, now: Version, forks: Forks, step: int) -> Checkpoint | None:
    """The newest complete checkpoint of at most `step` on the way that led to `now`; None when there is none."""

    def led_here(version: Version) -> bool:
        return version.lineage <= now.lineage and version.step <= common_step(now, version.lineage, forks)

    found = [c for c in find(root) if c.version.step <= step and led_here(c.version)]
    return max(found, key=lambda c: (c.version.step, c.version.lineage), default=None)


def note(root: Path, version: Version, metrics: Mapping[str, float]) -> bool:
    """Add metrics measured later to the checkpoint of `version`; False when there is none."""
    file = folder_of(root, version) / _MANIFEST
    if not file.is_file():
        return False
    manifest = json.loads(file.read_text())
    manifest["metrics"] |= _finite(metrics)
    _write(file, json.dumps(manifest, indent=1, sort_keys=True))
    return True


def prune(root: Path, keep_last: int, keep_best: str | None, best: Literal["max", "min"]) -> list[Path]:
    """Delete all but the newest `keep_last` and the best by the metric `keep_best`; returns what was deleted.

    An evaluation may end long after its checkpoint was written. So of the older ones without the metric the newest
    `UNRATED` are kept too, unless a newer one has it already: evaluations end in the order of their versions.
    """
    found = find(root)
    newest, older = found[-keep_last:], found[:-keep_last]
    kept = {c.folder for c in newest}
    if keep_best is not None:
        rated = [c for c in found if keep_best in c.metrics]
        unrated = [c for c in older if not rated or c.version > rated[-1].version]
        kept |= {c.folder for c in (*_best(rated, keep_best, best), *unrated[-UNRATED:])}
    gone = [c.folder for c in found if c.folder not in kept]
    for folder in gone:
        # Renamed first: a crash in the middle leaves no folder that looks complete.
        doomed = folder.with_name(f".{folder.name}.deleting")
        folder.rename(doomed)
        shutil.rmtree(doomed)
    return gone


def must_fit(checkpoint: Checkpoint, zero_stage: int, dtype: str) -> None:
    """Raises PenstockError unless engines of this kind can load the checkpoint; on how many ranks does not matter, and
    what is not sharded (stage 0) comes to any stage and back."""
    layout: list[tuple[str, object, object]] = [("learner.dtype", checkpoint.dtype, dtype)]
    if zero_stage and checkpoint.zero_stage:
        layout.append(("learner.zero_stage", checkpoint.zero_stage, zero_stage))
    for key, found, wanted in layout:
        if found != wanted:
            raise PenstockError(
                f"{checkpoint.folder} was written with {key}={found}, this run has {key}={wanted}; optimizer "
                f"states are laid out by it. Resume with {key}={found}, or start a new run from "
                f"{checkpoint.model}"
            )


def _best(rated: list[Checkpoint], metric: str, which: Literal["max", "min"]) -> list[Checkpoint]:
    """The best of those that have the metric, the newest among equals; none of none."""
    sign = 1 if which == "max" else -1
    return sorted(rated, key=lambda c: (sign * c.metrics[metric], c.version))[-1:]


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _write(file: Path, text: str) -> None:
    """Readers see old or new, and so does who starts after a power cut."""
    partial = file.with_name(f".{file.name}.writing")
    partial.write_text(text)
    _sync(partial)
    partial.replace(file)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
