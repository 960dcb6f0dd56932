"""Reads what Weights & Biases wrote offline, without Weights & Biases: its records, and the format of their log."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[bytes]:
    """LevelDB's log: blocks of 32 KiB with chunks of checksum (4), length (2), kind (1) and data; a head of 7 bytes."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        at += 7
        parts = data[at : at + length] if kind in (FULL, FIRST) else parts + data[at : at + length]
        at += length
        if kind in (FULL, LAST):
            yield parts


def history(path: Path) -> list[dict[str, Any]]:
    """Every row that was logged."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in parsed(path)
        if record.WhichOneof("record_type") == "history"
    ]


def parsed(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    for data in records(path):
        yield Record.FromString(data)
