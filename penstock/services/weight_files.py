"""What the headers of safetensors files say, and whether the files are whole. Loads no weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penstock.services.model_config import ModelError

_LONGEST_HEADER = 100 * 2**20
"""Bytes that the format allows."""
_LFS = b"version https://git-lfs"
INDEX = "model.safetensors.index.json"


def count(folder: Path) -> int | None:
    """Parameters in the safetensors files of `folder`, or None where there are none. Raises ModelError naming a file
    that is damaged."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    total = 0
    for file in files:
        for name, entry in header(file).items():
            if name != "__metadata__":
                parameters = 1
                for size in entry["shape"]:
                    parameters *= size
                total += parameters
    return total if files else None


def problem(folder: Path) -> str:
    """Why the weights in `folder` cannot be used; empty where they can. Damaged files are told by `count`."""
    there = {path.name for path in folder.iterdir()}
    if not any(name.endswith(".safetensors") for name in there):
        pickled = sorted(name for name in there if name.endswith((".bin", ".pt", ".pth")))
        if pickled:
            why = f"{pickled[0]} is a pickle, which could run code"
            return f"{str(folder)!r} has no *.safetensors: {why}; load it with transformers and save it again"
        return f"{str(folder)!r} has no weights: there is no *.safetensors; it holds {', '.join(sorted(there)[:8])}"
    lacking = sorted(_parts(folder / INDEX) - there)
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        return f"{str(folder)!r} is incomplete: its {INDEX} names {lacking[0]}{more}, which is missing; copy it again"
    return ""


def _parts(index: Path) -> set[str]:
    """The files that the weights of a model in parts lie in."""
    if not index.is_file():
        return set()
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged: {error!r}; copy it again") from error


def header(file: Path) -> Mapping[str, Any]:
    """Name, shape and place of every tensor. Raises ModelError for a file that is cut short or is none."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(len(_LFS))
        if start == _LFS:
            raise ModelError(f"{file} is only Git LFS's note of where the weights are; fetch them with: git lfs pull")
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else _LONGEST_HEADER + 1
        if length > _LONGEST_HEADER:
            raise ModelError(f"{file} is no safetensors file ({size} bytes); copy it again")
        stream.seek(8)
        try:
            found: Mapping[str, Any] = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in found.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ModelError(f"{file} has a damaged header ({size} bytes); copy it again") from error
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        raise ModelError(f"{file} is cut short: {size} of {whole} bytes are there; copy it again")
    return found
