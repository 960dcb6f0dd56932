"""Exact gradients, and the closed forms of biased ones: sums over answers and histories, written from the theory.

Nothing here calls the learner. Every function returns a gradient [rows, choices] with respect to the policy's table
of logits, in the direction of ascent.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.exact_worlds import Policies, World

Scalar = Callable[[Tensor], Tensor]


def ascent(function: Scalar, table: Tensor) -> Tensor:
    """Gradient of a scalar function of the table."""
    table = table.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(function(table), table)
    return gradient


def expected_return(world: World, table: Tensor, returns: Tensor | None = None) -> Tensor:
    """J = mean over prompts of Σ_y p(y) R(y)."""
    returns = world.returns if returns is None else returns
    return (world.likelihood(table) * returns).sum() / world.prompt_count


def policy_gradient(world: World, now: Tensor, returns: Tensor | None = None) -> Tensor:
    """∇J, through the probabilities of all answers."""
    return ascent(lambda table: expected_return(world, table, returns), now)


def conditional(world: World, table: Tensor, amounts: Tensor, after_choice: bool = False) -> Tensor:
    """[N, W] E[amounts | history], or given history and choice too, when `table` chooses. `amounts` is [N, W]."""
    key = world.histories
    if after_choice:
        key = key * world.shape[1] + world.choices
    weight = world.likelihood(table).unsqueeze(-1).expand_as(amounts)
    above, below = (torch.zeros(int(key.max()) + 1, dtype=torch.float64) for _ in range(2))
    above.index_add_(0, key[world.mask], (weight * amounts)[world.mask])
    below.index_add_(0, key[world.mask], weight[world.mask])
    return (above / below.clamp(min=1e-300))[key].where(world.mask, 0.0)


def to_go(world: World, gamma: float = 1.0) -> Tensor:
    """[N, W] what falls from a token on, discounted per choice of the policy; an environment's tokens take no time."""
    rewards = world.rewards
    columns, following = [], torch.zeros(len(rewards), dtype=torch.float64)
    for t in reversed(range(rewards.shape[1])):
        following = rewards[:, t] + (1 - (1 - gamma) * _choice_follows(world, t).double()) * following
        columns.append(following)
    return torch.stack(columns[::-1], -1)


def values(world: World, table: Tensor) -> Tensor:
    """[N, W] V(history) of the policy `table`; 0 where the policy does not choose."""
    return conditional(world, table, to_go(world))


def action_values(world: World, table: Tensor, gamma: float = 1.0) -> Tensor:
    """[N, W] Q(history, choice) of the policy `table`."""
    return conditional(world, table, to_go(world, gamma), after_choice=True)


def over_tokens(world: World, now: Tensor, sampler: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_y μ(y) Σ_t c(y, t) ∇log π(y_t | history): a sum over answers with fixed coefficients [N, W] or [N, 1]."""
    weight = (world.likelihood(sampler) / world.prompt_count).unsqueeze(-1) * coefficients
    return ascent(lambda table: (weight * world.logp(table)).where(world.mask, 0.0).sum(), now)


def per_answer(world: World, now: Tensor, sampler: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_y μ(y) c(y) ∇log π(y): the same with one coefficient [N] per answer."""
    return over_tokens(world, now, sampler, coefficients.unsqueeze(-1))


def given_choice(world: World, table: Tensor) -> Tensor:
    """[N, W] E[R of the whole answer | history, choice] when `table` chooses what follows."""
    return conditional(world, table, world.returns.unsqueeze(-1).expand_as(world.rewards), after_choice=True)


def over_pairs(world: World, tables: Policies, coefficients: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Σ_y μ(y) Σ_y' μ(y') Σ_t c(y, y', t) ∇log π(y_t | history), for one prompt. `coefficients` gets the rewards
    [N, 1, 1] of y and [1, N, 1] of y' and returns [N, N or 1, W or 1]."""
    other = world.likelihood(tables.sampler).reshape(1, -1, 1)
    found = (other * coefficients(world.returns.reshape(-1, 1, 1), world.returns.reshape(1, -1, 1))).sum(1)
    return over_tokens(world, tables.now, tables.sampler, found)


def kl_of_answers(world: World, now: Tensor, reference: Tensor) -> Tensor:
    """∇KL(π‖π_ref) of whole answers: also through which prefixes are reached."""

    def divergence(table: Tensor) -> Tensor:
        apart = (world.logp(table) - world.logp(reference)).where(world.mask, 0.0).sum(-1)
        return (world.likelihood(table) * apart).sum() / world.prompt_count

    return ascent(divergence, now)


def kl_of_tokens(world: World, now: Tensor, reference: Tensor, visited: Tensor, reverse: bool = False) -> Tensor:
    """∇ Σ_h d(h) KL(π(·|h)‖π_ref(·|h)), the histories being those that `visited` reaches, held fixed. With `reverse`
    KL(π_ref‖π)."""

    def divergence(table: Tensor) -> Tensor:
        one, other = table.log_softmax(-1), reference.log_softmax(-1)
        if reverse:
            one, other = other, one
        return _over_histories(world, visited, (one.exp() * (one - other)).sum(-1))

    return ascent(divergence, now)


def entropy_of_tokens(world: World, now: Tensor, visited: Tensor) -> Tensor:
    """∇ Σ_h d(h) H(π(·|h)) at the histories that `visited` reaches, held fixed."""

    def entropy(table: Tensor) -> Tensor:
        logs = table.log_softmax(-1)
        return _over_histories(world, visited, -(logs.exp() * logs).sum(-1))

    return ascent(entropy, now)


def _over_histories(world: World, visited: Tensor, per_row: Tensor) -> Tensor:
    """Σ over answers and tokens of the probability of the answer times what belongs to the token's row."""
    weight = (world.likelihood(visited) / world.prompt_count).unsqueeze(-1)
    return (weight * per_row[world.rows]).where(world.mask, 0.0).sum()


def _choice_follows(world: World, t: int) -> Tensor:
    """[N] whether the policy chose the token after token t."""
    if t + 1 >= world.mask.shape[1]:
        return torch.zeros(len(world.mask), dtype=torch.bool)
    return world.mask[:, t + 1]


def between(tables: Policies, max_rho: float) -> Tensor:
    """Logits of the policy ∝ min(ρ̄ μ, π_prox), whose values V-trace converges to (arXiv 1802.01561, eq. 3)."""
    return torch.minimum(math.log(max_rho) + tables.sampler.log_softmax(-1), tables.prox.log_softmax(-1))
