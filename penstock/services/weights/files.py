"""Weights through safetensors files: in shared memory on one node, or on a file system that all nodes share.

    FOLDER/0.12/00000.safetensors …    the tensors, in shards
    FOLDER/0.12/manifest.json          written last

A version is written beside its place and put there by one rename, so that a reader finds all of it or
nothing. Readers map the files: a version that is deleted while it is read stays readable on a local file
system; on a network one the reader's pin keeps it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.services.contracts import WeightsError
from penstock.services.versions import Version
from penstock.services.weights.manifest import Manifest, ProbeRecord, TensorEntry, describe, verify

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
SHARD_BYTES = 2**30
"""Tensors are gathered and written in shards of about this size, which bounds the sender's extra memory."""


class WeightsMissing(WeightsError):
    """A version that is not there (yet, or any more). Nothing was loaded; the engine is as it was."""


class FileSender:
    """Publishes versions into a folder that it owns. Implements `contracts.WeightSender`."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder = folder
        self._shard_bytes = shard_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for half in folder.glob(".*.writing"):  # of a sender that was killed
            shutil.rmtree(half)

    def publish(
        self, version: Version, tensors: Iterable[tuple[str, torch.Tensor]], probe: ProbeRecord | None = None
    ) -> None:
        """Make `version` readable. Raises WeightsError when the tensors cannot be written (no space, no tensors).

        `probe` lets every engine prove after its swap that it computes with these weights.
        """
        place = self.folder / str(version)
        half = self.folder / f".{version}.writing"
        shutil.rmtree(half, ignore_errors=True)
        try:
            half.mkdir(parents=True)
            entries = tuple(e for shard in self._shards(tensors) for e in _write(half, *shard))
            if not entries:
                raise WeightsError(f"version {version} has no tensors")
            total = sum(e.bytes for e in entries)
            manifest = Manifest(version=str(version), tensors=entries, total_bytes=total, probe=probe)
            (half / MANIFEST).write_bytes(manifest.encode())
            shutil.rmtree(place, ignore_errors=True)  # the same version again, after a lost reply
            half.rename(place)
        except OSError as error:
            raise WeightsError(f"weights of version {version} cannot be written to {self.folder}: {error}") from error
        finally:
            shutil.rmtree(half, ignore_errors=True)

    def _shards(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Contiguous tensors in main memory, gathered into files of about `shard_bytes`."""
        shard: dict[str, torch.Tensor] = {}
        size = number = 0
        for name, tensor in tensors:
            shard[name] = tensor.detach().cpu().contiguous()
            size += tensor.numel() * tensor.element_size()
            if size >= self._shard_bytes:
                yield f"{number:05d}.safetensors", shard
                shard, size, number = {}, 0, number + 1
        if shard:
            yield f"{number:05d}.safetensors", shard

    def retire(self, keep: frozenset[Version]) -> list[Version]:
        """Delete all versions but these; returns what was deleted, oldest first."""
        gone = [v for v in published_in(self.folder) if v not in keep]
        for version in gone:
            # The manifest first: a reader that comes now finds the version missing and not damaged.
            (self.folder / str(version) / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.folder / str(version))
        return gone

    def close(self) -> None:
        """Remove the folder: these are copies, checkpoints hold what lasts."""
        shutil.rmtree(self.folder, ignore_errors=True)


class FileReceiver:
    """Reads versions from a sender's folder. Implements `contracts.WeightReceiver`."""

    def __init__(self, folder: Path, deadline: float = 30.0) -> None:
        """`deadline`: seconds until a version must have become visible; network file systems cache folders."""
        self.folder = folder
        self._deadline = deadline

    def manifest(self, version: Version) -> Manifest:
        """Raises WeightsMissing when `version` is not there, WeightsError when its manifest is damaged."""
        file = self.folder / str(version) / MANIFEST
        began = time.monotonic()
        while True:
            with suppress(FileNotFoundError):
                manifest = Manifest.decode(file.read_bytes(), f"the manifest of version {version}, {file},")
                if manifest.version != str(version):
                    raise WeightsError(f"{file} is the manifest of version {manifest.version}, expected {version}")
                return manifest
            there = published_in(self.folder)
            waited = time.monotonic() - began
            if waited >= self._deadline or any(v > version for v in there):
                raise WeightsMissing(
                    f"weights of version {version} are not in {self.folder}, waited {waited:.1f} s for the learner to "
                    f"publish them; there are: {', '.join(map(str, there)) or 'none'}"
                )
            time.sleep(0.02)

    @contextmanager
    def fetch(self, version: Version) -> Iterator[Mapping[str, torch.Tensor]]:
        """The tensors of `version`, every checksum verified; valid inside the `with` block.

        Raises WeightsMissing when the version is not there, WeightsError naming version, tensor and file when
        anything in it is missing or damaged.
        """
        manifest = self.manifest(version)
        tensors: dict[str, torch.Tensor] = {}
        by_file: dict[str, list[TensorEntry]] = {}
        for entry in manifest.tensors:
            by_file.setdefault(entry.file, []).append(entry)
        for name, entries in by_file.items():
            tensors.update(_read(version, self.folder / str(version) / name, entries))
        yield tensors


def published_in(folder: Path) -> list[Version]:
    """The versions in `folder`, oldest first."""
    found = []
    for path in folder.glob("[0-9]*.[0-9]*"):
        with suppress(ValueError):
            found.append(Version.parse(path.name))
    return sorted(found)


def _write(folder: Path, name: str, shard: dict[str, torch.Tensor]) -> list[TensorEntry]:
    from safetensors.torch import save_file

    save_file(shard, folder / name)
    return [describe(tensor_name, tensor, name) for tensor_name, tensor in shard.items()]


def _read(version: Version, file: Path, entries: list[TensorEntry]) -> dict[str, torch.Tensor]:
    """The tensors of one file, verified; they share the file's memory map."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            tensors = {name: opened.get_tensor(name) for name in names}
    except FileNotFoundError as error:
        raise WeightsMissing(
            f"weights of version {version}: the file {file} is missing; it holds {entries[0].name!r}"
        ) from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"weights of version {version}: the file {file}, with {entries[0].name!r}, is damaged: {error}"
        ) from error
    for entry in entries:
        verify(version, entry, tensors, str(file))
    unknown = sorted(set(tensors) - {e.name for e in entries})
    if unknown:
        raise WeightsError(f"weights of version {version}: {file} holds {unknown[0]!r}, which its manifest lacks")
    return tensors
