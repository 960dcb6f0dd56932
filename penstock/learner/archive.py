"""Archived steps on disk: the encoded batch and, as configured, all that is needed to compute it anew.

    archive/step-000012-lineage-0/
        batch.safetensors       columns with the learner's log-probs and advantages; facts of the step in its header
        groups.msgpack          the groups the step was fed, as they came from the store      only with the weights
        policy/                 config.json and model.safetensors: weights the step started from      archive.weights
        value/                  the same of a value model, where the algorithm has one

A step is written beside its place and put there by one rename; `prune` takes the oldest ones away.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from penstock.learner.batch import Array, Batch, BatchError, facts_in
from penstock.services.codec import decode, encode
from penstock.services.run_paths import BATCH_FILE
from penstock.services.trajectory import Group
from penstock.services.versions import Version

if TYPE_CHECKING:
    import torch

    from penstock.learner.deal import Share

_GROUPS = "groups.msgpack"
_CONFIG, WEIGHTS = "config.json", "model.safetensors"
T = TypeVar("T")

POLICY, VALUE = "policy", "value"
"""Folders of the weights within an archived step."""


class SavedModel(msgspec.Struct, frozen=True):
    """Weights on their way to the disk."""

    config: str
    """config.json of the model, in the form of Hugging Face."""
    tensors: Mapping[str, Any]
    """By their Hugging Face names, on the CPU."""


def write(
    folder: Path,
    version: Version,
    batch: Batch,
    facts: Mapping[str, Any],
    groups: Sequence[Group] = (),
    models: Mapping[str, SavedModel] | None = None,
) -> Path:
    """The step that ends in `version`, into `folder`; complete or not there at all. `models` by POLICY and VALUE."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    (partial / BATCH_FILE).write_bytes(batch.to_bytes(version=str(version), **facts))
    if groups:
        (partial / _GROUPS).write_bytes(msgspec.msgpack.encode([encode(group) for group in groups]))
    for name, model in (models or {}).items():
        _write_model(partial / name, model)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def config_of(model: Any) -> str:
    """config.json of a Hugging Face model, with the name of its class, as its own `save_pretrained` writes it."""
    return json.dumps({**model.config.to_dict(), "architectures": [type(model).__name__]}, default=str)


def _write_model(folder: Path, model: SavedModel) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / _CONFIG).write_text(model.config)
    tensors: dict[str, torch.Tensor] = {name: tensor.contiguous() for name, tensor in model.tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def learned(shares: Iterable[Share], logp_start: Sequence[Array]) -> Batch:
    """The rows of all shares with the learner's log-probs at the start of the step, which come per share."""
    parts = zip(shares, logp_start, strict=True)
    return Batch.join([share.batch.with_columns(logp_learner=logp.copy()) for share, logp in parts])


def read(folder: Path) -> tuple[Version, Batch, dict[str, Any]]:
    """The version that a step ended in, its batch, its facts. Raises BatchError when the folder holds none."""
    batch, facts = _from_file(folder, lambda file: Batch.from_bytes(file.read_bytes()))
    return Version.parse(facts.pop("version")), batch, facts


def read_facts(folder: Path) -> tuple[Version, dict[str, Any]]:
    """The version that a step ended in and its facts, without the batch. Raises BatchError as `read` does."""
    facts = _from_file(folder, facts_in)
    return Version.parse(facts.pop("version")), facts


def _from_file(folder: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of the step's batch file. Raises BatchError that names the file where it is missing or
    damaged."""
    file = folder / BATCH_FILE
    try:
        return read(file)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise BatchError(f"{folder} holds no archived batch: {BATCH_FILE} is missing") from error
    except BatchError as error:
        raise BatchError(f"{file} is damaged: {error}") from error


def read_groups(folder: Path) -> list[Group]:
    """The groups of an archived step. Raises FileNotFoundError where they were not kept, BatchError and CodecError
    for damage."""
    try:
        payloads = msgspec.msgpack.decode((folder / _GROUPS).read_bytes(), type=list[bytes])
    except msgspec.MsgspecError as error:
        raise BatchError(f"{folder / _GROUPS} is damaged: {error}") from error
    return [decode(payload, Group) for payload in payloads]


def steps(folder: Path) -> list[Path]:
    """The archived steps in `folder`, oldest first. The run may prune meanwhile: what goes is no step."""
    if not folder.is_dir():
        return []
    found: list[tuple[int, str, Path]] = []
    for path in folder.iterdir():
        if not path.name.startswith("."):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found.append(((path / BATCH_FILE).stat().st_mtime_ns, path.name, path))
    return [path for _, _, path in sorted(found)]


def has_weights(step: Path) -> bool:
    """Whether an archived step can be computed anew."""
    return (step / POLICY / WEIGHTS).is_file() and (step / _GROUPS).is_file()


def remove_unfinished(folder: Path) -> None:
    """Delete what a process that has died was writing or deleting. Only while nobody else writes into `folder`."""
    for pattern in (".*.writing", ".*.deleting"):
        for left in folder.glob(pattern):
            shutil.rmtree(left)


def prune(folder: Path, keep_last: int) -> None:
    """Delete all but the newest steps."""
    for old in steps(folder)[:-keep_last]:
        # Out of sight first: who reads it meanwhile finds it gone, and never a half of it.
        old.rename(old.with_name(f".{old.name}.deleting"))
    for gone in folder.glob(".*.deleting"):
        shutil.rmtree(gone)
