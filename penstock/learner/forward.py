"""The forward passes of a train step: one micro-batch through the policy, and through a value model beside it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from penstock.learner.critic import window_values
from penstock.learner.micro import MicroBatch
from penstock.learner.routing import replay
from penstock.services.logprobs import Window, window_outputs


class Models(Protocol):
    """What a step looks at: the `Engines` of a run, or the bare models of `recompute`."""

    @property
    def policy(self) -> Any:
        """A LogprobModel, or an engine around one."""

    @property
    def critic(self) -> Any:
        """A ValueModel, or an engine around one; None where values come from a head on the policy, or from nowhere."""

    @property
    def device(self) -> torch.device:
        """Where they are."""


def policy_pass(policy: Any, part: MicroBatch, entropy_gradient: bool = False) -> Window:
    """Log-probs, entropies and, from a value head, values. `policy`: a LogprobModel, or an engine around one."""
    with replay(policy if isinstance(policy, nn.Module) else policy.module, part.experts):
        return window_outputs(policy, part.rows, part.temperatures, entropy_gradient, part.kept)


def value_pass(critic: Any, part: MicroBatch) -> Float[Tensor, "rows window+1"]:
    """Values by a ValueModel, or by an engine around one. If it has experts, it routes for itself: the record is of the
    policy's routers."""
    return window_values(critic, part.rows)
