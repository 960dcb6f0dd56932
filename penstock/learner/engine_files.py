"""How DeepSpeed's engine writes and reads the files of its state here: reading them executes nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from torch import Tensor

from penstock.learner.state_files import read_tensors, tensors_only


class CheckpointFiles(TorchCheckpointEngine):  # type: ignore[misc]  # no types there
    """DeepSpeed's checkpoint files, read with a list of what may be in them instead of free unpickling."""

    def save(self, state_dict: Any, path: str) -> None:
        super().save(_without_enums(state_dict), path)

    def load(self, path: str, map_location: Any = None) -> Any:
        return read_tensors(path, map_location)


@contextmanager
def as_universal(engine: Any) -> Iterator[None]:
    """Inside, the engine takes what it loads for a universal checkpoint. Its code for that reads files by itself, so
    torch is told to allow no more in them than elsewhere. It gives every group of parameters the settings of the first,
    which decays what must not be decayed, and with ZeRO 3 all share one counter of updates, which each moves on."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    engine._config.load_universal_checkpoint = True
    try:
        with tensors_only():
            yield
    finally:
        engine._config.load_universal_checkpoint = False
    for group, own in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(own)
    for state in getattr(engine.optimizer, "optimizer", engine.optimizer).state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].clone()


def _without_enums(state: Any) -> Any:
    """The same with members of enumerations as the numbers they are: before Python 3.11.4 one is pickled as a call of
    `getattr`, which nobody should have to allow."""
    if isinstance(state, Enum):
        return state.value
    if type(state) in (list, tuple):
        return type(state)(_without_enums(value) for value in state)
    if isinstance(state, dict):
        copied = copy.copy(state)
        copied.update({key: _without_enums(value) for key, value in state.items()})
        return copied
    return state
