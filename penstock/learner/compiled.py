"""Layers compiled by torch: what lies between their matrix products is fused and passes through memory once.

Only the blocks that a model repeats are compiled, so that one compilation serves all of them, for any number of rows
of any length. Torch keeps what it has compiled on disk, where the next start finds it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penstock.learner.critic import ValueModel
from penstock.services.contracts import PenstockError
from penstock.services.logprob_model import LogprobModel

_VARIANTS = 64
"""Compilations of one block that torch may make, before it silently goes back to what is not compiled: with and without
gradient, for one row and for several, for few and for many tokens."""


def compile_layers(model: LogprobModel | ValueModel, budget: int) -> int:
    """Compile the blocks of `model` in place, for micro-batches of up to `budget` tokens; returns how many there are.
    Its numbers change by rounding. Raises PenstockError where that is impossible."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache()))
    backbone = model.backbone
    blocks = _blocks_of(backbone)
    for block in blocks:
        block.compile(dynamic=True, recompile_limit=_VARIANTS)
    try:
        _warm_up(backbone, model.masked, budget)
    except torch._dynamo.exc.TorchDynamoException as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PenstockError(
            f"{type(blocks[0]).__name__} cannot be compiled: {first}; on a CPU torch needs a C++ compiler for it (g++, "
            "or what CXX names); set learner.compile to false to go without"
        ) from error
    return len(blocks)


def _blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """The layers that a Hugging Face model repeats, as it says itself to those who split it over devices."""
    names = set(getattr(backbone, "_no_split_modules", None) or ())
    lists = (parts for parts in backbone.modules() if isinstance(parts, nn.ModuleList))
    blocks = [block for parts in lists for block in parts if type(block).__name__ in names]
    if not blocks:
        raise PenstockError(
            f"{type(backbone).__name__} does not say which layers it repeats (_no_split_modules): it cannot be "
            "compiled; set learner.compile to false"
        )
    return blocks


def _warm_up(backbone: nn.Module, masked: bool, budget: int) -> None:
    """Compile now what training would otherwise stop for, with and without gradient."""
    text: Any = backbone.config.get_text_config()  # type: ignore[union-attr,operator]
    device = next(backbone.parameters()).device
    longest = getattr(text, "max_position_embeddings", None) or budget
    for rows, length in _shapes(budget, longest):
        tokens = (torch.arange(rows * length, device=device) * 7919).remainder(text.vocab_size).view(rows, length)
        given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens) if masked else None, "use_cache": False}
        with torch.no_grad():
            backbone(**given)
        backbone(**given).last_hidden_state.sum().backward()
    backbone.zero_grad(set_to_none=True)


def _shapes(budget: int, longest: int) -> Iterator[tuple[int, int]]:
    """One row and several, of few tokens and of many: torch compiles for them apart, and where it draws the line
    depends on the model, so numbers of tokens double. All are odd: torch takes a size that equals one of the model's
    own for the same."""
    sizes = list(takewhile(lambda tokens: tokens < max(64, budget), ((3 << power) | 1 for power in count(3))))
    yield from ((1, size) for size in sizes if size <= longest)
    yield from ((3, size) for size in (5, *sizes) if 3 * size <= max(64, budget) and size <= longest)
    yield from ((max(5, size // 17) | 1, 17) for size in sizes)


def _cache() -> Path:
    """A folder for this kind of CPU: machines that share a home may differ, and code for one ends in SIGILL on another.
    Torch's own place is one that everybody may write to, and whoever can has his code executed."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    digest = hashlib.sha256("\n".join(kind).encode()).hexdigest()[:12]
    return Path.home() / ".cache" / "penstock" / f"inductor-{digest}"
