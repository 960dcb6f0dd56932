"""Whether a model has to be told which positions are padding.

Rows are padded on the right, and causal attention never looks right: what lies behind a row changes nothing in it. A
mask that says so all the same costs attention its causal kernel, on a GPU the flash kernels, and rows · length² of
memory. So it is left out where a model gives the same without it, which is tried and not assumed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def needs_mask(model: nn.Module) -> bool:
    """Whether `model`, a Hugging Face model without its output layer, gives other states where right padding is not
    masked; found by a forward pass of two rows."""
    weight = next(model.parameters())
    tokens = (torch.arange(16, device=weight.device) * 7919 + 1).remainder(_vocabulary(model)).view(2, 8)
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    with torch.no_grad(), in_eval_mode(model):
        masked = _states(model, tokens, mask)
        try:
            bare = _states(model, tokens, None)
        except Exception:  # noqa: BLE001  (whatever a model does that wants its mask)
            return True
    if masked is None or bare is None:
        return True
    theirs, ours = masked.float()[mask.bool()], bare.float()[mask.bool()]
    tolerance = max(1e-4, 8 * torch.finfo(masked.dtype).eps)
    same = (ours - theirs).norm(dim=-1) <= tolerance * theirs.norm(dim=-1)
    return not bool(same.all())


def _states(model: nn.Module, tokens: Tensor, mask: Tensor | None) -> Tensor | None:
    found = model(input_ids=tokens, attention_mask=mask, use_cache=False)
    return getattr(found, "last_hidden_state", None)


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _vocabulary(model: nn.Module) -> int:
    return int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr,operator]
