"""The loss of a micro-batch, put together from the cells of a row as in the papers. A pure function.

The train step, `penstock whatif` and the proofs by enumeration all call it, so that what is proven is what is run.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from penstock.learner.algorithms.bound import BoundAlgorithm
from penstock.learner.algorithms.objectives import Facts
from penstock.learner.algorithms.ranges import combined, within_range
from penstock.learner.algorithms.reductions import weighted_sum


class Composed(NamedTuple):
    """What `compose` makes of a micro-batch: its part of the mini-batch's loss, as a sum."""

    loss: Float[Tensor, ""]
    """Objective, KL to the reference and entropy bonus."""
    policy: Float[Tensor, ""]
    """The objective alone, weighted and masked."""
    keep: Bool[Tensor, "rows window"]
    """Tokens that the loss is a sum over: those that count and that neither trust nor rejection leaves out."""
    facts: Facts
    mask: Bool[Tensor, "rows window"]
    """Tokens that count and are within range."""


def compose(
    algorithm: BoundAlgorithm,
    logp: Float[Tensor, "rows window"],
    logp_prox: Float[Tensor, "rows window"],
    logp_sampler: Float[Tensor, "rows window"],
    logp_reference: Float[Tensor, "rows window"] | None,
    advantages: Float[Tensor, "rows window"],
    mask: Bool[Tensor, "rows window"],
    weights: Float[Tensor, " rows"],
    entropy: Float[Tensor, "rows window"] | None = None,
    bound: float = math.inf,
) -> Composed:
    """Σ weights · (w · objective + β · KL − c · entropy) over the tokens to keep; w and keep from trust and rejection.

    `mask` is True on the tokens that count; those out of range (`ranges.within_range`) are left out here, before
    anything is exponentiated. `weights` come from the reduction over the whole mini-batch, so that what is left out
    stays in the denominators; `bound` is the rejection's, from the whole batch.
    """
    used = [logp, logp_prox, logp_sampler]
    if algorithm.penalty is not None and logp_reference is not None:
        used.append(logp_reference)
    mask, range_facts = within_range(mask, *used)
    trust, trust_facts = algorithm.trust(logp_prox, logp_sampler, advantages, mask)
    kept, reject_facts = algorithm.reject(logp_prox, logp_sampler, advantages, mask, bound)
    keep = trust.keep & kept
    losses, facts = algorithm.objective(logp, logp_prox, logp_sampler, advantages, mask)
    losses = trust.weights * losses
    policy = weighted_sum(losses, keep, weights)
    if algorithm.penalty is not None and logp_reference is not None:
        zero = logp.new_zeros(())
        inputs = (x.where(mask, zero) for x in (logp, logp_reference, logp_sampler))
        losses = losses + algorithm.kl_coefficient * algorithm.penalty(*inputs)
    if algorithm.entropy_coefficient > 0 and entropy is not None:
        losses = losses - algorithm.entropy_coefficient * entropy
    facts = combined(range_facts, facts, trust_facts, reject_facts)
    return Composed(weighted_sum(losses, keep, weights), policy, keep, facts, mask)
