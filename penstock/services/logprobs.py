"""Log-probabilities of tokens under a model, and the entropy of what they were drawn from: the only implementation.

The learner, the reference scorer and the parity checks all come here, so that they mean the same thing by
the same name: natural logs of the distribution after temperature, in float32 (float64 stays float64).

Rows are padded on the right and grouped by a token budget. Causal attention never looks right, so a padded
row gives the same numbers as the row alone, up to the rounding of another kernel shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from penstock.services.logprob_head import KeptTokens, exact, out_of_reach
from penstock.services.trajectory import Kept

Row = tuple[NDArray[np.int32], NDArray[np.int32]]
"""The token ids of one prompt and of one response to it."""
PASS_COST = 1 / 8
"""What one more pass through a model costs, in full passes: less padding than that is not worth it."""


class Model(Protocol):
    """What this file needs of a model: a `LogprobModel`, also inside an engine."""

    def __call__(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        targets: Tensor,
        responses: Tensor,
        temperature: Sequence[float],
        entropy_gradient: bool,
        kept: KeptTokens | None,
    ) -> Any: ...


class Window(NamedTuple):
    """What a model says of the window of padded rows."""

    logp: Float[Tensor, "rows window"]
    """Log-probability of each target; exactly 0, without gradient, outside of the responses."""
    entropy: Float[Tensor, "rows window"]
    """Of what the target was drawn from; 0 outside of the responses."""
    values: Float[Tensor, "rows window_and_one"] | None
    """Of the states before each target and, last, behind the final position; 0 on padding. None without value head."""


def token_logprobs(
    logits: Float[Tensor, "*batch vocab"],
    tokens: Int[Tensor, "*batch"],
    temperature: float | Float[Tensor, "*#batch"] = 1.0,
    entropy_gradient: bool = False,
    kept: KeptTokens | None = None,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """`log p(token)` and the entropy `−Σ p log p`, both in nats, of `p = softmax(logits / temperature)`, for all tokens
    at once.

    `temperature` is a number, or one per row. `kept` says over which tokens the softmax goes. A logit of −inf takes
    its token out of the distribution: it adds nothing to the entropy, and a gradient never becomes NaN because of
    it. The entropy carries a gradient only when asked for, since that keeps another [*batch, vocab] tensor alive.
    """
    logits = logits.to(exact(logits.dtype))
    if kept is not None:
        logits = logits.masked_fill(out_of_reach(kept, logits.shape[-1]).view_as(logits), -torch.inf)
    if isinstance(temperature, Tensor):
        logits = logits / temperature.to(logits.dtype).unsqueeze(-1)
    elif temperature != 1.0:
        logits = logits / temperature
    normaliser = logits.logsumexp(dim=-1)
    logp = logits.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1) - normaliser
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        # 0 · (−inf) is NaN, forward and backward: masked logits are set to 0 before the product.
        reachable = torch.where(logits == -torch.inf, 0.0, logits)
        entropy = normaliser - (logits.softmax(dim=-1) * reachable).sum(dim=-1)
    return logp, entropy


@dataclass(frozen=True)
class PaddedRows:
    """Several rows side by side, and the window of positions whose next token belongs to a response.

    Column `j` of the window is what the model says after position `start + j`; R = L − 1 − start columns.
    """

    tokens: Int[Tensor, "rows length"]
    attention: Bool[Tensor, "rows length"]
    """False on padding."""
    targets: Int[Tensor, "rows window"]
    """The token that really came next."""
    responses: Bool[Tensor, "rows window"]
    """True where that token is part of the row's response."""


def pad_rows(rows: Sequence[Row], pad: int = 0, device: torch.device | str = "cpu") -> PaddedRows:
    """Rows padded on the right with the token `pad`; any valid id will do, nothing looks at it.

    Every prompt needs at least one token (the first response token is predicted from it). An empty `rows` gives
    one row of two tokens without a response: the pass of a rank that has nothing left to compute.
    """
    lengths = [len(prompt) + len(response) for prompt, response in rows] or [2]
    start = min((len(prompt) for prompt, _ in rows), default=1) - 1
    count, length = len(lengths), max(lengths)
    # A window is never empty, not even when all responses are: kernels disagree about empty tensors.
    length = max(length, start + 2)
    tokens = np.full((count, length), pad, np.int64)
    attention = np.zeros((count, length), np.bool_)
    responses = np.zeros((count, length), np.bool_)
    for i, (prompt, response) in enumerate(rows):
        tokens[i, : lengths[i]] = np.concatenate([prompt, response])
        attention[i, : lengths[i]] = True
        responses[i, len(prompt) : lengths[i]] = True
    if not rows:
        attention[:] = True
    return PaddedRows(
        tokens=torch.as_tensor(tokens, device=device),
        attention=torch.as_tensor(attention, device=device),
        targets=torch.as_tensor(tokens[:, start + 1 :], device=device),
        responses=torch.as_tensor(responses[:, start + 1 :], device=device),
    )


def window_outputs(
    model: Model,
    rows: PaddedRows,
    temperature: float | Tensor = 1.0,
    entropy_gradient: bool = False,
    kept: KeptTokens | None = None,
) -> Window:
    """One forward pass. `temperature` is a number or one per row; `kept` is of the responses' tokens, row by row."""
    count = len(rows.targets)
    temperatures = temperature.flatten().tolist() if isinstance(temperature, Tensor) else [temperature]
    return Window(
        *model(
            input_ids=rows.tokens,
            attention_mask=rows.attention.long(),
            targets=rows.targets,
            responses=rows.responses,
            temperature=temperatures if len(temperatures) == count else temperatures * count,
            entropy_gradient=entropy_gradient,
            kept=kept,
        )
    )


def window_logprobs(
    model: Model,
    rows: PaddedRows,
    temperature: float | Tensor = 1.0,
    entropy_gradient: bool = False,
    kept: KeptTokens | None = None,
) -> tuple[Float[Tensor, "rows window"], Float[Tensor, "rows window"]]:
    """Log-probabilities and entropies of `window_outputs`."""
    found = window_outputs(model, rows, temperature, entropy_gradient, kept)
    return found.logp, found.entropy


def plan_micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices grouped so that rows × longest row stays within the budget, padding included.

    Rows lie side by side by length, longest first, cut where that makes least of padding and passes together: of all
    ways to cut them the cheapest, where a pass costs `PASS_COST` of the budget besides its tokens. A row longer than
    the budget gets a micro-batch of its own: to refuse it is the caller's business, before anything was generated.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    widths = np.maximum(1, np.asarray([lengths[i] for i in order], np.int64))
    # Of the first so many rows: what they cost at least, and where their last micro-batch begins then.
    costs, cuts = np.zeros(len(order) + 1), [0] * (len(order) + 1)
    first = 0
    for end in range(1, len(order) + 1):
        while first < end - 1 and (end - first) * widths[first] > token_budget:
            first += 1
        begins = np.arange(first, end)
        found = costs[first:end] + (end - begins) * widths[first:end] + token_budget * PASS_COST
        cheapest = int(found.argmin())
        costs[end], cuts[end] = found[cheapest], first + cheapest
    plan: list[list[int]] = []
    end = len(order)
    while end:
        plan.append(order[cuts[end] : end])
        end = cuts[end]
    return plan[::-1]


def sequence_logprobs(
    model: Model,
    rows: Sequence[Row],
    temperature: float | Sequence[float] = 1.0,
    token_budget: int = 8192,
    device: torch.device | str = "cpu",
    kept: Sequence[Kept | None] | None = None,
) -> list[NDArray[np.float32]]:
    """Log-probability of every response token under `model`, in the order of `rows`: float32 [len(response)] each.

    `temperature` is one number, or one per row; `kept`, per row, what its tokens were drawn from. At most
    `token_budget` tokens, padding included, go through the model at a time. No gradient is kept, and the model is used
    in whatever mode (train, eval) it is in.
    """
    temperatures = np.broadcast_to(np.asarray(temperature, np.float32), (len(rows),))
    results: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(rows)
    for indices in plan_micro_batches([len(p) + len(r) for p, r in rows], token_budget):
        padded = pad_rows([rows[i] for i in indices], device=device)
        per_row = torch.as_tensor(temperatures[indices].copy(), device=device).unsqueeze(-1)
        # Not inference_mode: ZeRO 3 keeps small tensors that it gathers here, and a later backward pass needs them.
        with torch.no_grad():
            logp, _ = window_logprobs(model, padded, per_row, kept=_kept_tokens(kept, indices, rows, device))
        for i, values, mask in zip(indices, logp.float().cpu(), padded.responses.cpu(), strict=True):
            results[i] = values[mask].numpy().copy()
    return results


def _kept_tokens(
    kept: Sequence[Kept | None] | None, indices: Sequence[int], rows: Sequence[Row], device: torch.device | str
) -> KeptTokens | None:
    """Of the rows `indices`; None where nothing was removed from any."""
    chosen = [kept[i] for i in indices] if kept is not None else []
    if not any(chosen):
        return None
    whole = [
        np.zeros(len(rows[i][1]), np.int32) if k is None else k.counts for i, k in zip(indices, chosen, strict=True)
    ]
    ids = [k.tokens for k in chosen if k is not None]
    counts, tokens = (torch.as_tensor(np.concatenate(parts).astype(np.int64), device=device) for parts in (whole, ids))
    return KeptTokens(counts, tokens)
