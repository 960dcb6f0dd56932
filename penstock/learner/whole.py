"""An engine's state in whole tensors: how what one rank wrote unsharded comes to many, and what many wrote to one.

DeepSpeed's universal checkpoint knows ZeRO stages 1 to 3 only. At stage 0 there are no shards: weights and AdamW's
moments lie in the checkpoint as they are, and are laid into an engine as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from penstock.learner.state_files import read_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's, by torch's names."""


class Whole(NamedTuple):
    """By the names that an engine's module has for them."""

    weights: dict[str, Tensor]
    """Buffers, too."""
    moments: dict[str, dict[str, Tensor]]
    """Of parameters that have had a gradient."""
    updates: int
    """Optimizer updates applied."""


def of_unsharded(folder: Path, optimized: list[str]) -> Whole:
    """What an engine at stage 0 has written into `folder`; `optimized`: names of parameters in the optimizer's order.
    Raises what reading raises, and KeyError."""
    written = _model_file(folder)
    states = written["optimizer"]["state"]
    order = [index for group in written["optimizer"]["param_groups"] for index in group["params"]]
    moments = {
        name: {key: states[index][key] for key in MOMENTS}
        for name, index in zip(optimized, order, strict=True)
        if index in states
    }
    return Whole(written["module"], moments, int(written["updates"]))


def of_universal(folder: Path, names: Iterable[str]) -> Whole:
    """What the universal checkpoint in `folder` has of the parameters of these `names`, each of any shape. Raises what
    reading raises, and KeyError."""
    written = _model_file(folder)
    weights, moments = dict(written["module"]), {}
    for name in names:
        part = folder / "zero" / name
        if (part / "fp32.pt").is_file():
            weights[name] = _tensor(part / "fp32.pt")
        if (part / f"{MOMENTS[0]}.pt").is_file():
            moments[name] = {key: _tensor(part / f"{key}.pt") for key in MOMENTS}
    return Whole(weights, moments, int(written["updates"]))


def lay_unsharded(state: Whole, module: nn.Module, optimizer: Any) -> None:
    """Give it all to an engine at stage 0. Raises KeyError for what is missing."""
    _lay_buffers(state, module)
    optimizer.state.clear()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(state.weights[name].view_as(parameter))
            if name in state.moments:
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.updates), device=parameter.device),
                    **{key: _like(tensor, parameter) for key, tensor in state.moments[name].items()},
                }


def lay_sharded(state: Whole, module: nn.Module, optimizer: Any) -> None:
    """Give every rank of an engine at a stage from 1 on its part; all ranks call it alike. Raises KeyError for what is
    missing."""
    from deepspeed import zero

    _lay_buffers(state, module)
    _begin_moments(optimizer, state.updates)
    for name, parameter in module.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        weight = state.weights[name].view(shape).to(parameter.device)
        with torch.no_grad(), zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(weight)
        _lay_part(parameter, weight, None)
        for key, tensor in state.moments.get(name, {}).items():
            _lay_part(parameter, tensor.to(parameter.device), key)


def _begin_moments(optimizer: Any, updates: int) -> None:
    """New ones of a sharded optimizer, which has none before its first step: all 0."""
    shards = getattr(optimizer, "single_partition_of_fp32_groups", None)
    for shard in optimizer.fp32_partitioned_groups_flat if shards is None else shards:
        moments = {key: torch.zeros_like(shard) for key in MOMENTS}
        optimizer.optimizer.state[shard] = {"step": torch.tensor(float(updates), device=shard.device), **moments}
    if shards is not None:
        # What else its first step would do: parameters find their part of the moments. Also where it was done before.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _lay_part(parameter: nn.Parameter, tensor: Tensor, key: str | None) -> None:
    """Of one parameter, this rank's part of the optimizer's weight (`key` is None) or of a moment."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    shard = getattr(parameter, "ds_tensor", None)
    local = shard is not None
    if shard is not None:
        # At stage 3 parts are equally long, the last one padded: cut here, as DeepSpeed's own cut reads past the end.
        length, rank = shard.numel(), torch.distributed.get_rank()
        part = tensor.new_zeros(length)
        mine = tensor.flatten()[rank * length : (rank + 1) * length]
        part[: len(mine)] = mine
        tensor = part
    if key is None:
        (safe_set_local_fp32_param if local else safe_set_full_fp32_param)(parameter, tensor)
    else:
        (safe_set_local_optimizer_state if local else safe_set_full_optimizer_state)(parameter, tensor, key)


def _lay_buffers(state: Whole, module: nn.Module) -> None:
    kept = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, buffer in kept.items():
            if not isinstance(buffer, nn.Parameter):
                buffer.copy_(state.weights[name])


def _like(tensor: Tensor, parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(tensor.view_as(parameter))


def _model_file(folder: Path) -> dict[str, Any]:
    """Of the first rank, which has what all have alike."""
    (first, *_) = sorted(folder.glob("*mp_rank_00_model_states.pt"))
    found: dict[str, Any] = read_tensors(first)
    return found


def _tensor(path: Path) -> Tensor:
    """The converter writes some in a dictionary, and some bare."""
    found = read_tensors(path)
    tensor: Tensor = found["param"] if isinstance(found, dict) else found
    return tensor.detach()
