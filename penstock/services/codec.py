"""Records to bytes and back: MessagePack behind a header, no pickle.

    4 bytes  magic "PNSK"
    2 bytes  schema version, big-endian
    1 byte   length of the record's name, then the name
    8 bytes  xxh3-64 of the body, big-endian
    body     MessagePack of the record, arrays as raw little-endian bytes

The name and the schema version are checked before the body is looked at, so that a record of another
version is refused as that and not as damage.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from penstock.services.trajectory import Completion, Group, PartialGroup, Prompt, Record, RecordError, Trajectory

MAGIC = b"PNSK"
SCHEMA = 2
_HEAD = struct.Struct(">4sHB")
_SUM = struct.Struct(">Q")
_KINDS: dict[str, type[Record]] = {t.__name__: t for t in (Prompt, Completion, Trajectory, Group, PartialGroup)}
_DTYPES: dict[str, np.dtype[Any]] = {
    "i": np.dtype("<i4"),
    "s": np.dtype("<i2"),
    "f": np.dtype("<f4"),
    "b": np.dtype("?"),
}
_BY_BYTE = {ord(code): dtype for code, dtype in _DTYPES.items()}

R = TypeVar("R", bound=Record)


class CodecError(ValueError):
    """Bytes that are not the record they should be; the text says which record and what is wrong."""


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        for code, dtype in _DTYPES.items():
            if value.dtype == dtype:
                return code.encode() + value.astype(dtype, copy=False).tobytes()
    raise NotImplementedError(f"no encoding for {type(value).__name__}")


def _decode_array(_kind: type, value: Any) -> Any:
    dtype = _BY_BYTE.get(value[0]) if isinstance(value, bytes) and value else None
    if dtype is None:
        raise ValueError("expected an array")
    array: NDArray[Any] = np.frombuffer(value, dtype, -1, 1)
    return array


# One encoder and one decoder per record type; building them costs more than a small record.
_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_DECODERS = {name: msgspec.msgpack.Decoder(kind, dec_hook=_decode_array) for name, kind in _KINDS.items()}


def encode(record: Record) -> bytes:
    """Bytes of one record. Raises CodecError for a type that has no place in the schema."""
    name = type(record).__name__
    if _KINDS.get(name) is not type(record):
        raise CodecError(f"{name} is not one of the records {', '.join(_KINDS)}")
    body = _ENCODER.encode(record)
    return _HEAD.pack(MAGIC, SCHEMA, len(name)) + name.encode() + _SUM.pack(xxhash.xxh3_64_intdigest(body)) + body


def decode(data: bytes, kind: type[R]) -> R:
    """The record of type `kind` in `data`.

    Raises CodecError when the bytes are another record, another schema version, cut short or altered.
    """
    wanted = kind.__name__
    if len(data) < _HEAD.size:
        raise CodecError(f"{wanted}: {len(data)} bytes are too few for a record")
    magic, schema, length = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise CodecError(f"{wanted}: these bytes do not begin like a Penstock record")
    if schema != SCHEMA:
        raise CodecError(f"{wanted}: written with schema version {schema}, this build reads version {SCHEMA}")
    start = _HEAD.size + length + _SUM.size
    if len(data) < start:
        raise CodecError(f"{wanted}: the record is cut short in its header")
    name = data[_HEAD.size : _HEAD.size + length].decode("ascii", "replace")
    if name != wanted:
        raise CodecError(f"expected the record {wanted}, found {name!r}")
    (checksum,) = _SUM.unpack_from(data, start - _SUM.size)
    body = memoryview(data)[start:]
    if xxhash.xxh3_64_intdigest(body) != checksum:
        raise CodecError(f"{wanted}: the checksum does not match, the record is damaged")
    try:
        record = _DECODERS[wanted].decode(body)
    except (msgspec.MsgspecError, RecordError, ValueError) as error:
        raise CodecError(f"{wanted}: {error}") from error
    return cast(R, record)
