"""A model's output layer that gives log-probabilities instead of logits, a chunk of tokens at a time.

Logits of [tokens, vocabulary] are the largest tensor of a train step, and nobody needs them: only the sampled
token's log-probability and the entropy. So the layer works through its tokens in chunks, keeps two numbers per
token, and computes each chunk's logits again in backward. Everything happens within one call of the module that owns
the weight, so an engine that shards weights gathers this one once for all chunks, forward and backward, and ranks with
different numbers of tokens still do the same collectives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_CHUNK_BYTES = {"cpu": 64 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 512 * 2**20
"""Float32 logits of one chunk. Weights are read once per chunk, their gradient is read and written: on an accelerator
arithmetic outweighs that only where a chunk is larger."""
_FAR = -1e30
"""Stands for −inf where a product with 0 follows; its exponential is exactly 0."""


class Finish(NamedTuple):
    """What a model does to the output of its last layer: `cap · tanh(scale · x / cap)`, or `scale · x` without cap."""

    scale: float = 1.0
    cap: float | None = None


AS_IS = Finish()


class KeptTokens(NamedTuple):
    """What top-p and top-k left to draw each token from, end to end."""

    counts: Int[Tensor, " tokens"]
    """How many were left; 0 where that is not known, which leaves the whole vocabulary."""
    tokens: Int[Tensor, " kept"]
    """Their ids, end to end."""


class LogprobHead(nn.Linear):
    """The given output layer, sharing its weights. Called with hidden states alone it gives logits, as before."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight = layer.weight
        self.bias = layer.bias

    def forward(
        self,
        hidden: Float[Tensor, "*batch hidden"],
        targets: Int[Tensor, " tokens"] | None = None,
        temperatures: Float[Tensor, " tokens"] | None = None,
        entropy_gradient: bool = False,
        kept: KeptTokens | None = None,
        finish: Finish = AS_IS,
        chunk: int = 0,
    ) -> Any:
        """With targets: (log-probabilities, entropies) [tokens] of `hidden` [tokens, hidden], in nats, float32 (float64
        stays float64). `chunk` is the number of tokens whose logits exist at a time, 0 for the default."""
        if targets is None:
            return functional.linear(hidden, self.weight, self.bias)
        return _Chunked.apply(  # type: ignore[no-untyped-call]
            hidden,
            self.weight,
            self.bias,
            targets,
            temperatures,
            kept,
            _Settings(entropy_gradient, finish, chunk or chunk_tokens(self.weight)),
        )


class _Settings(NamedTuple):
    entropy_gradient: bool
    finish: Finish
    chunk: int


class _Chunked(torch.autograd.Function):
    """(hidden, weight, bias, targets, temperatures, kept, settings) → log-probabilities, entropies.

    With z = finish(W h + b) / T, p = softmax z and H the entropy: d log p(y) / dz_j = 1[j = y] − p_j, and
    dH / dz_j = −p_j (log p_j + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperatures: Tensor,
        kept: KeptTokens | None,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor]:
        dtype = exact(hidden.dtype)
        temperatures = temperatures.to(dtype).unsqueeze(-1)
        logp, entropy, normaliser = (hidden.new_empty(len(hidden), dtype=dtype) for _ in range(3))
        for part, removed in _parts(len(hidden), settings.chunk, kept, weight):
            z, _ = _scaled(hidden[part], weight, bias, temperatures[part], settings.finish)
            if removed is not None:
                z.masked_fill_(removed, -torch.inf)
            chosen = z.gather(-1, targets[part].unsqueeze(-1)).squeeze(-1)
            largest = z.amax(-1)
            p = z.sub_(largest.unsqueeze(-1)).exp()
            total = p.sum(-1)
            normaliser[part] = largest + total.log()
            logp[part] = chosen - normaliser[part]
            # 0 · (−inf) is NaN.
            entropy[part] = total.log() - torch.linalg.vecdot(p, z.clamp_(min=_FAR)) / total
        ctx.save_for_backward(hidden, weight, bias, targets, temperatures, normaliser, entropy)
        ctx.kept, ctx.settings = kept, settings
        if not settings.entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, temperatures, normaliser, entropy = ctx.saved_tensors
        settings: _Settings = ctx.settings
        for_hidden, for_weight, for_bias, *_ = ctx.needs_input_grad
        # A sum of many chunks: in float32, also where weights are bfloat16.
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=normaliser.dtype) if for_bias else None
        for part, removed in _parts(len(hidden), settings.chunk, ctx.kept, weight):
            z, slope = _scaled(hidden[part], weight, bias, temperatures[part], settings.finish)
            if removed is not None:
                z.masked_fill_(removed, -torch.inf)
            z.sub_(normaliser[part].unsqueeze(-1))
            pull = grad_logp[part].unsqueeze(-1)
            if settings.entropy_gradient:
                p = z.exp()
                by_entropy = grad_entropy[part].unsqueeze(-1)
                z.clamp_(min=_FAR).add_(entropy[part].unsqueeze(-1)).mul_(by_entropy).add_(pull).mul_(p).neg_()
                del p
            else:
                z.exp_().mul_(-pull)
            z.scatter_add_(-1, targets[part].unsqueeze(-1), pull)
            z.mul_(settings.finish.scale / temperatures[part])
            if slope is not None:
                z.mul_(slope)
            if grad_bias is not None:
                grad_bias += z.sum(0)
            z = z.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(z, weight, out=grad_hidden[part])
            if grad_weight is not None:
                _add_product(grad_weight, z.t(), hidden[part])
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 4,
        )


def _parts(tokens: int, chunk: int, kept: KeptTokens | None, weight: Tensor) -> Iterator[tuple[slice, Tensor | None]]:
    """Slices of at most `chunk` tokens, each with the vocabulary that was out of reach for its tokens."""
    starts = range(0, tokens, chunk)
    if kept is None:
        yield from ((slice(start, start + chunk), None) for start in starts)
        return
    ends = functional.pad(kept.counts.cumsum(0), (1, 0))[[*starts, tokens]].tolist()
    for start, first, last in zip(starts, ends, ends[1:], strict=False):
        counts = kept.counts[start : start + chunk]
        yield slice(start, start + chunk), out_of_reach(KeptTokens(counts, kept.tokens[first:last]), len(weight))


def out_of_reach(kept: KeptTokens, vocabulary: int) -> Bool[Tensor, "tokens vocabulary"]:
    """Which of the vocabulary could not be drawn."""
    rows = torch.arange(len(kept.counts), device=kept.counts.device).repeat_interleave(kept.counts)
    removed = (kept.counts > 0).unsqueeze(-1).repeat(1, vocabulary)
    removed[rows, kept.tokens] = False
    return removed


def chunk_tokens(weight: Tensor) -> int:
    """Tokens whose logits exist at a time, by default."""
    return max(1, _CHUNK_BYTES.get(weight.device.type, _CHUNK_BYTES_ELSEWHERE) // (4 * len(weight)))


def exact(dtype: torch.dtype) -> torch.dtype:
    """What log-probabilities of a model of this type are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _scaled(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperatures: Tensor, finish: Finish
) -> tuple[Tensor, Tensor | None]:
    """Logits over temperature in the exact type, a tensor of one's own; and the slope of the cap where there is one."""
    z = functional.linear(hidden, weight, bias).to(temperatures.dtype)
    if finish.cap is None:
        return z.mul_(finish.scale / temperatures), None
    z.mul_(finish.scale / finish.cap).tanh_()
    slope = 1 - z.square()
    return z.mul_(finish.cap / temperatures), slope


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left · right."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


class Readout(nn.Linear):
    """A linear layer from 0 that multiplies in float32: bfloat16 has three digits, too few for a regression."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        dtype = exact(hidden.dtype)
        return functional.linear(hidden.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
