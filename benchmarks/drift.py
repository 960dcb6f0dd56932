"""How far bfloat16 takes the loss and the gradient of every row from float32: `python -m benchmarks.drift`.

A small residual network stands in for a language model: random weights, logits with the spread of a trained one. One
set of tokens, advantages, sampler and reference; the forward pass before and after an update in either number format;
log-probs and the loss in float32, as in the learner.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from penstock.learner.algorithms import table
from penstock.learner.algorithms.bound import BoundAlgorithm, bind
from penstock.learner.algorithms.composition import compose
from penstock.learner.config import AlgorithmSection
from penstock.services.logprobs import token_logprobs


@dataclass(frozen=True)
class Drift:
    """bfloat16 against float32, of one row."""

    algorithm: str
    logp: float
    """Mean |Δ log π|, in nats."""
    log_ratio: float
    """Mean |Δ log π/π_prox|: what the two forward passes have in common cancels."""
    loss: float
    """|Δ loss| over Σ |loss of a token|, since a loss may be near 0 by cancellation."""
    cosine: float
    """Between the gradients in the weights."""
    norm: float
    """Norm of the gradient in bfloat16 over that in float32."""
    clipped: float
    """Change of the share of tokens that the objective clips."""


class Network(nn.Module):
    """Contexts [tokens, width] → logits [tokens, vocab]."""

    def __init__(self, width: int, vocab: int, blocks: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(blocks))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        # Logits of a standard deviation of 3: an entropy of a few nats, as a language model's.
        nn.init.normal_(self.head.weight, std=3 / math.sqrt(width))

    def forward(self, states: Tensor) -> Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            states = states + down(nn.functional.silu(up(states)))
        found: Tensor = self.head(self.norm(states))
        return found


@dataclass(frozen=True)
class World:
    """Everything that is the same in both number formats; [rows, window] but where another shape is given."""

    before: Network
    """The policy at the start of the step."""
    after: Network
    """The policy after an update."""
    contexts: Tensor
    """[tokens, width]"""
    tokens: Tensor
    """[tokens]"""
    sampler: Tensor
    reference: Tensor
    advantages: Tensor
    mask: Tensor

    @functools.cached_property
    def passes(self) -> list[tuple[Tensor, Tensor]]:
        """(log π_prox, log π) of the tokens in float32 and in bfloat16, the latter with their graph."""
        found = []
        for dtype in (torch.float32, torch.bfloat16):
            with torch.no_grad():
                prox = self._logp(self.before, dtype)
            found.append((prox, self._logp(self.after, dtype)))
        return found

    def _logp(self, network: Network, dtype: torch.dtype) -> Tensor:
        """Log-probs of the tokens with the network in `dtype`."""
        logits = torch.func.functional_call(
            network, {name: p.to(dtype) for name, p in network.named_parameters()}, self.contexts.to(dtype)
        )
        return token_logprobs(logits, self.tokens)[0].view_as(self.mask)


def world(rows: int, window: int, seed: int = 0, width: int = 64, vocab: int = 1024, blocks: int = 4) -> World:
    """Answers that a slightly older policy drew; a tenth of their tokens are a tool's."""
    torch.manual_seed(seed)
    before, after = Network(width, vocab, blocks), Network(width, vocab, blocks)
    with torch.no_grad():
        for old, new in zip(before.parameters(), after.parameters(), strict=True):
            new.copy_(old + 0.01 * old.std() * torch.randn_like(old))
        contexts = torch.randn(rows * window, width)
        logits = before(contexts)
        older, other = logits + 0.05 * torch.randn_like(logits), logits + 0.2 * torch.randn_like(logits)
        tokens = torch.multinomial(older.softmax(-1), 1).squeeze(-1)
        sampler, reference = (token_logprobs(x, tokens)[0].view(rows, window) for x in (older, other))
    advantages = torch.randn(rows, 1).expand(rows, window)
    return World(before, after, contexts, tokens, sampler, reference, advantages, torch.rand(rows, window) > 0.1)


def measure(name: str, algorithm: BoundAlgorithm, made: World) -> Drift:
    """The drift of one row in a world."""
    weights = algorithm.reduction(made.mask.sum(1), torch.arange(len(made.mask)) // 4)
    found = []
    for prox, logp in made.passes:
        bound = math.inf
        if algorithm.reject_bound is not None:
            bound = algorithm.reject_bound((prox - made.sampler)[made.mask])
        whole = compose(
            algorithm, logp, prox, made.sampler, made.reference, made.advantages, made.mask, weights, bound=bound
        )
        slopes = torch.autograd.grad(whole.loss, list(made.after.parameters()), retain_graph=True)
        objective, facts = algorithm.objective(logp, prox, made.sampler, made.advantages, made.mask)
        size = float((objective.detach().abs() * weights.unsqueeze(1)).sum())
        clipped = sum(float(fact[made.mask].mean()) for key, fact in facts.items() if "clipfrac" in key)
        flat = torch.cat([slope.flatten() for slope in slopes])
        found.append((logp.detach(), logp.detach() - prox, float(whole.loss.detach()), flat, size, clipped))
    exact, rough = found
    mask = made.mask
    return Drift(
        algorithm=name,
        logp=float((exact[0] - rough[0]).abs()[mask].mean()),
        log_ratio=float((exact[1] - rough[1]).abs()[mask].mean()),
        loss=abs(exact[2] - rough[2]) / exact[4],
        cosine=float(nn.functional.cosine_similarity(exact[3], rough[3], dim=0)),
        norm=float(rough[3].norm() / exact[3].norm()),
        clipped=rough[5] - exact[5],
    )


def section(name: str, budget: int) -> AlgorithmSection:
    """A row as it is, with the budget that `fixed_length` asks for."""
    row = table.find(name)
    changed = row.reduction.kind == "fixed_length"
    return AlgorithmSection.model_validate({"name": name} | ({"reduction": {"budget": budget}} if changed else {}))


def main() -> None:
    """One JSON line per row of the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    made = world(given.rows, given.window, given.seed)
    for name in table.rows():
        found = measure(name, bind(section(name, given.window)), made)
        sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
