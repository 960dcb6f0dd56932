"""Layers compiled by torch: what lies between their matrix products is fused and passes through memory once.

Only the blocks that a model repeats are compiled, so that one compilation serves all of them, for any number of rows
of any length. Torch keeps what it has compiled on disk, where the next start finds it.
"""

from __future__ import annotations

import os
from itertools import count, takewhile
from pathlib import Path
from typing import Any

# Whoever can write there can have his code executed, and torch's own place is one that everybody may write to.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "penstock" / "inductor"))

import torch
from torch import nn

from penstock.services.contracts import PenstockError

_VARIANTS = 64
"""Compilations of one block that torch may make, before it silently goes back to what is not compiled: with and without
gradient, for one row and for several, and for few and for many tokens."""


def compile_layers(model: nn.Module, budget: int) -> int:
    """Compile the blocks of `model`, which holds a Hugging Face model, in place, for micro-batches of up to `budget`
    tokens; returns how many there are. Its numbers change by rounding. Raises PenstockError where that is impossible.
    """
    blocks = _blocks_of(model)
    torch._dynamo.config.recompile_limit = max(_VARIANTS, torch._dynamo.config.recompile_limit)
    for block in blocks:
        block.compile(dynamic=True)
    try:
        _warm_up(model, budget)
    except torch._dynamo.exc.TorchDynamoException as error:
        first = str(error).strip().splitlines()[0]
        raise PenstockError(
            f"{type(blocks[0]).__name__} cannot be compiled: {first}; torch needs a C++ compiler for it (g++, or what "
            "CXX names); set learner.compile to false to go without"
        ) from error
    return len(blocks)


def _blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers that a Hugging Face model repeats, as it says itself to those who split it over devices."""
    names = {name for part in model.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    blocks = [
        block
        for parts in model.modules()
        if isinstance(parts, nn.ModuleList)
        for block in parts
        if type(block).__name__ in names
    ]
    if not blocks:
        raise PenstockError(
            f"{type(model).__name__} does not say which layers it repeats (_no_split_modules): it cannot be compiled; "
            "set learner.compile to false"
        )
    return blocks


def _warm_up(model: nn.Module, budget: int) -> None:
    """One row, and several with few tokens and with many, with and without gradient: what else comes is served by what
    these make. Torch compiles for few tokens and for many apart, and where it draws the line depends on the model, so
    numbers of tokens double. All sizes are odd: one that equals one of the model's own is taken for the same."""
    base: Any = next(part for part in model.modules() if getattr(part, "_no_split_modules", None))
    base = base.base_model
    device = next(model.parameters()).device
    doubling = takewhile(lambda rows: 17 * rows < max(64, budget), ((3 << power) | 1 for power in count()))
    for rows, length in ((1, 37), (3, 5), *((rows, 17) for rows in doubling)):
        tokens = torch.zeros(rows, length, dtype=torch.long, device=device)
        with torch.no_grad():
            base(input_ids=tokens, attention_mask=None, use_cache=False)
        base(input_ids=tokens, attention_mask=None, use_cache=False).last_hidden_state.sum().backward()
    model.zero_grad(set_to_none=True)
