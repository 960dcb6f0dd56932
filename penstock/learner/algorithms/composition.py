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
    """Tokens that the objective is a sum over: those that count and that neither trust nor rejection leaves out."""
    facts: Facts
    mask: Bool[Tensor, "rows window"]
    """Tokens that count and are within range."""
    trust_weights: Float[Tensor, "rows window"]
    """What the correction multiplies the objective by."""


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
    """Σ weights · w · objective over the tokens to keep, and Σ weights · (β · KL − c · entropy) over all that are in
    range; w and keep from trust and rejection. The KL is of all tokens as in DeepSeek-V3.2 (2512.02556): an unbiased
    estimate would not be one without those that the sampler was far off on.

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
    policy = weighted_sum(trust.weights * losses, keep, weights)
    loss = policy
    if algorithm.penalty is not None and logp_reference is not None:
        zero = logp.new_zeros(())
        inputs = (x.where(mask, zero) for x in (logp, logp_reference, logp_sampler))
        loss = loss + algorithm.kl_coefficient * weighted_sum(algorithm.penalty(*inputs), mask, weights)
    if algorithm.entropy_coefficient > 0 and entropy is not None:
        loss = loss - algorithm.entropy_coefficient * weighted_sum(entropy, mask, weights)
    facts = combined(range_facts, facts, trust_facts, reject_facts)
    return Composed(loss, policy, keep, facts, mask, trust.weights)
