"""Keep routing: a mixture of experts under training uses the experts that were chosen when its tokens were sampled.

Two engines, or two versions of the weights, that differ by a rounding choose other experts for some tokens, and their
log-probs jump. So the sampler's choice is recorded and repeated here; how much each expert counts is still the
learner's own: its router's weights at these experts, with their gradients (DeepSeek-V3.2, 2512.02556).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from weakref import WeakSet

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from penstock.learner.batch import Batch
from penstock.services.contracts import PenstockError
from penstock.services.logprobs import PaddedRows

ALWAYS_RENORMALISED = frozenset({"MixtralTopKRouter"})
"""Routers whose weights sum to 1 whatever the configuration says; the others have `norm_topk_prob`."""

_replayed: list[tuple[nn.Module, Tensor]] = []
"""The replays that are going on, the innermost last."""
_checked: WeakSet[nn.Module] = WeakSet()
"""Routers of which it has been seen that they weigh as it is assumed here."""


def padded_experts(part: Batch, rows: PaddedRows) -> Int[Tensor, "layers tokens top_k"] | None:
    """The experts of `part`'s rows at every position of `rows`, row by row, int16; −1 where a router may choose for
    itself: on padding, and at an answer's last token, which the sampler never computed. None without a record."""
    if part.experts is None or part.prompt_experts is None:
        return None
    count, length = rows.tokens.shape
    laid = np.full((count, length, *part.experts.shape[1:]), -1, np.int16)
    prompts = np.split(part.prompt_experts, np.cumsum(part.prompt_lengths)[:-1]) if len(part) else []
    answers = part.split(part.experts)
    for row, prompt, answer in zip(laid, prompts, answers, strict=bool(len(part))):
        fed = np.concatenate([prompt, answer[:-1]])
        row[: len(fed)] = fed
    flat = np.ascontiguousarray(laid.reshape(count * length, *laid.shape[2:]).transpose(1, 0, 2))
    return torch.from_numpy(flat).to(rows.tokens.device)


@contextlib.contextmanager
def replay(model: nn.Module, experts: Int[Tensor, "layers tokens top_k"] | None) -> Iterator[None]:
    """Forward passes of `model` within use `experts`, those of −1 excepted; all choose for themselves without any.

    Layers are those with experts, from first to last; tokens are the positions of the batch, row by row. With gradient
    checkpointing, `checkpoint_contexts` lets layers that are computed again in backward use the same. Raises
    PenstockError for a router that is not known, and when shapes do not fit.
    """
    if experts is None:
        yield
        return
    if any(part._compiled_call_impl is not None for part in model.modules()):
        raise PenstockError(
            "routing is replayed by hooks, which compiled layers do not call: set learner.compile=false"
        )
    routers = routers_of(model)
    if len(routers) != len(experts):
        raise PenstockError(
            f"the record has the experts of {len(experts)} layers, and {type(model).__name__} has {len(routers)} "
            "routers: sampler and learner hold different models"
        )
    _replayed.append((model, experts))
    handles = [r.register_forward_hook(_choosing(mine)) for r, mine in zip(routers, experts, strict=True)]
    try:
        yield
    finally:
        _replayed.pop()
        for handle in handles:
            handle.remove()


def checkpoint_contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """`context_fn` of torch's checkpointing: a layer that is computed again replays what its first pass replayed."""
    again = replay(*_replayed[-1]) if _replayed else contextlib.nullcontext()
    return contextlib.nullcontext(), again


def routers_of(model: nn.Module) -> list[nn.Module]:
    """The routers of a Hugging Face model, from the first layer to the last. Raises PenstockError for unknown ones, and
    where there is none."""
    found = [m for m in model.modules() if type(m).__name__.endswith("Router")]
    for router in found:
        if not hasattr(router, "norm_topk_prob") and type(router).__name__ not in ALWAYS_RENORMALISED:
            raise PenstockError(
                f"routing cannot be replayed in a {type(router).__name__}: known are routers with `norm_topk_prob` and "
                f"{', '.join(sorted(ALWAYS_RENORMALISED))}; set rollout.keep_routing to false"
            )
    if not found:
        raise PenstockError(
            f"{type(model).__name__} has no router that could replay routing: it is no mixture of experts, or of "
            "another make; set rollout.keep_routing to false"
        )
    return found


def _choosing(
    experts: Int[Tensor, "tokens top_k"],
) -> Callable[[nn.Module, object, tuple[Tensor, Tensor, Tensor]], tuple[Tensor, Tensor, Tensor]]:
    """A forward hook of one router, whose output is (logits, weights, experts) of all tokens."""

    def choose(router: nn.Module, _: object, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, own = output
        if own.shape != experts.shape:
            raise PenstockError(
                f"the record has {experts.shape[1]} experts for {experts.shape[0]} positions, and the router chose "
                f"{own.shape[1]} for {own.shape[0]}"
            )
        if router not in _checked:
            _check(router, logits, weights, own)
        given = experts.to(own.dtype)
        chosen = torch.where(given < 0, own, given)
        return logits, _weights(router, logits, chosen).to(weights.dtype), chosen

    return choose


def _weights(router: nn.Module, logits: Tensor, chosen: Tensor) -> Tensor:
    """How much each chosen expert counts: its softmax probability, as a share of the chosen ones' where that is so."""
    found = torch.softmax(logits, -1, dtype=torch.float).gather(-1, chosen)
    renormalised = type(router).__name__ in ALWAYS_RENORMALISED or getattr(router, "norm_topk_prob", False)
    return found / found.sum(-1, keepdim=True) if renormalised else found


def _check(router: nn.Module, logits: Tensor, weights: Tensor, own: Tensor) -> None:
    """Whether the router's own weights are what `_weights` makes of its own choice."""
    with torch.no_grad():
        apart = float((_weights(router, logits, own) - weights.float()).abs().max())
    if not apart <= (1e-5 if weights.dtype in (torch.float32, torch.float64) else 1e-2):
        raise PenstockError(
            f"routing cannot be replayed in a {type(router).__name__}: it does not weigh its experts by a softmax "
            f"(off by {apart:.2g}); set rollout.keep_routing to false"
        )
    _checked.add(router)
