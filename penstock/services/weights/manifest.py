"""What is known of one published version: its tensors with their checksums, and what a correct engine says.

Read and written as JSON. A manifest is complete at birth, and refused by name when it is not one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import xxhash

from penstock.services.contracts import WeightsError
from penstock.services.versions import Version

if TYPE_CHECKING:
    import torch

SCHEMA = 1
PROBE_LENGTH = 32
"""Tokens of the probe: long enough that every layer and most heads matter, short enough to cost milliseconds."""


class ProbeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Log-probabilities that the publisher's own forward pass gives to a fixed sequence."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of `tokens[1:]`, each given all tokens before it, in nats at temperature 1."""

    def __post_init__(self) -> None:
        if len(self.tokens) < 2 or len(self.logprobs) != len(self.tokens) - 1:
            raise ValueError(
                f"ProbeRecord: {len(self.tokens)} tokens need {len(self.tokens) - 1} log-probs, at least one; "
                f"found {len(self.logprobs)}"
            )


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of a version."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As torch names it, without the `torch.` in front."""
    checksum: str
    """xxh3-64 of the raw little-endian bytes, 16 hexadecimal digits."""
    bytes: int
    file: str
    """Relative to the version's folder; empty where the transport uses no files."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a reader needs to know before it trusts a version."""

    version: str
    tensors: tuple[TensorEntry, ...]
    total_bytes: int
    probe: ProbeRecord | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        Version.parse(self.version)
        if self.total_bytes != sum(t.bytes for t in self.tensors) or not self.tensors:
            raise ValueError(
                f"Manifest: total_bytes is {self.total_bytes}, the {len(self.tensors)} tensors have "
                f"{sum(t.bytes for t in self.tensors)}"
            )

    def encode(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    @classmethod
    def decode(cls, data: bytes, where: str) -> Manifest:
        """Inverse of `encode`. Raises WeightsError naming `where` for anything else."""
        try:
            manifest = msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError) as error:
            raise WeightsError(f"{where} is not a manifest of weights: {error}") from error
        if manifest.schema != SCHEMA:
            raise WeightsError(f"{where} was written with schema {manifest.schema}, this build reads {SCHEMA}")
        return manifest

    def differs(self, other: Manifest) -> bool:
        """True when any tensor has another checksum, or is in only one of the two."""
        return {t.name: t.checksum for t in self.tensors} != {t.name: t.checksum for t in other.tensors}


def probe_tokens(vocab: int, length: int = PROBE_LENGTH) -> tuple[int, ...]:
    """The fixed sequence every publisher of a model with `vocab` tokens uses: spread over the vocabulary."""
    return tuple((7 + 2654435761 * i) % 2**32 % vocab for i in range(1, length + 1))


def dtype_name(tensor: torch.Tensor) -> str:
    """For example `bfloat16`."""
    return str(tensor.dtype).removeprefix("torch.")


def checksum(tensor: torch.Tensor) -> str:
    """xxh3-64 of the bytes of a contiguous tensor in main memory."""
    import torch

    return xxhash.xxh3_64_hexdigest(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)


def describe(name: str, tensor: torch.Tensor, file: str) -> TensorEntry:
    """The entry of a contiguous tensor in main memory."""
    return TensorEntry(
        name=name,
        shape=tuple(tensor.shape),
        dtype=dtype_name(tensor),
        checksum=checksum(tensor),
        bytes=tensor.numel() * tensor.element_size(),
        file=file,
    )


def verify(version: Version, entry: TensorEntry, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise WeightsError, naming version, tensor and file, unless `tensors` holds exactly what `entry` says."""
    at = f"weights of version {version}, tensor {entry.name!r} in {where}"
    tensor = tensors.get(entry.name)
    if tensor is None:
        raise WeightsError(f"{at}: missing")
    found = (tuple(tensor.shape), dtype_name(tensor))
    if found != (entry.shape, entry.dtype):
        raise WeightsError(f"{at}: expected {entry.dtype}{list(entry.shape)}, found {found[1]}{list(found[0])}")
    found_sum = checksum(tensor)
    if found_sum != entry.checksum:
        raise WeightsError(f"{at}: the checksum is {found_sum}, the manifest says {entry.checksum}; it is damaged")
