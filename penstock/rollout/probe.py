"""Does the engine compute with the weights it was given? The judgement after every swap.

A reload can fail silently: the call returns, and a packed copy of an old tensor goes on being used. What lies
in the engine's parameters cannot be read back, so the proof is what it computes: the log-probabilities of a
fixed sequence against those that the publisher's own forward pass found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.services.contracts import WeightsError
from penstock.services.versions import Version
from penstock.services.weights.manifest import Manifest

TOLERANCE = {"float32": (2e-4, 5e-4), "bfloat16": (2e-2, 2e-1)}
"""(mean, largest) absolute difference in nats. Measured between engine and transformers: float32 at most 1e-5,
bfloat16 mean 1.5e-3 and at most 8e-3; a forgotten output layer is off by 0.5 and more. A single small step can
be within the bounds of bfloat16, but steps add up: an engine that stands still is found as soon as the policy
has moved by more than the bound."""


def judge(version: Version, manifest: Manifest, found: Sequence[float], dtype: str, experts: bool = False) -> float:
    """The largest difference between the manifest's probe and the engine's. Raises WeightsError beyond tolerance.

    `experts`: the model is a mixture of experts. A rounding can send a token to others, which moves its log-prob by
    tenths of a nat; so only the better half of the differences is judged. Weights that are not in use move them all.
    """
    assert manifest.probe is not None
    formats = {dtype, *(t.dtype for t in manifest.tensors)}
    kind = "float32" if formats <= {"float32"} else "bfloat16"
    difference = np.abs(np.asarray(found, np.float64) - np.asarray(manifest.probe.logprobs[: len(found)], np.float64))
    if experts:
        difference = np.sort(difference)[: (len(difference) + 1) // 2]  # what is not a number comes last
    mean, largest = float(difference.mean()), float(difference.max())
    allowed_mean, allowed = TOLERANCE[kind]
    if not (mean <= allowed_mean and largest <= allowed):  # also when something is not a number
        raise WeightsError(
            f"the engine does not compute with the weights of version {version}: log-probs of the probe differ from "
            f"the learner's by {mean:.2g} on average and up to {largest:.2g} nats; allowed in {kind} are "
            f"{allowed_mean:g} and {allowed:g}. The reload did not take effect, or engine and learner build "
            "different models"
        )
    return largest


def judge_change(
    version: Version, before: tuple[Manifest, Sequence[float]] | None, manifest: Manifest, found: Sequence[float]
) -> None:
    """The weaker check where the manifest has no probe: other weights must compute something else.

    `before` is the previous version's manifest and what the engine then computed. Raises WeightsError.
    """
    if before is not None and manifest.differs(before[0]) and list(found) == list(before[1]):
        raise WeightsError(
            f"the engine computes the same log-probs with version {version} as with {before[0].version}, although "
            "tensors differ: the reload did not take effect"
        )
