"""The files of an engine's state: where they are, in which forms, and that reading them executes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import torch

STATE = "deepspeed"
"""The folder of an engine's state within its part of a checkpoint."""
_FORCE_TENSORS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's own variable."""


class Form(Enum):
    """How a checkpoint lies in its files."""

    OWN = "as engines of one stage, on one number of ranks, write it and read it"
    UNSHARDED = "whole, as engines at stage 0 write it, for engines that shard"
    UNIVERSAL = "as DeepSpeed's converter makes it of shards, for any engines"


@contextmanager
def tensors_only() -> Iterator[None]:
    """Inside, `torch.load` allows no more than DeepSpeed's files have in them."""
    before = os.environ.get(_FORCE_TENSORS)
    os.environ[_FORCE_TENSORS] = "1"
    # For good: torch's context for it takes away on leaving what an outer one has allowed.
    torch.serialization.add_safe_globals(allowed())
    try:
        yield
    finally:
        del os.environ[_FORCE_TENSORS]
        if before is not None:
            os.environ[_FORCE_TENSORS] = before


def read_tensors(path: Path | str, map_location: Any = "cpu") -> Any:
    """What a file holds: tensors and plain values, and nothing in it is executed."""
    torch.serialization.add_safe_globals(allowed())
    return torch.load(path, map_location=map_location, weights_only=True)


def allowed() -> list[Any]:
    """What DeepSpeed puts into its files besides tensors and plain values."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, fragment_address]
