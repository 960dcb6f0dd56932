"""Routing replayed inside of DeepSpeed: sharded weights, layers computed again in backward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import batch_of
from test_routing import qwen

from penstock.learner.batch import Batch
from penstock.learner.config import LearnerSection
from penstock.learner.forward import policy_pass
from penstock.learner.micro import MicroBatch
from penstock.learner.ranks import Team
from penstock.services.logprob_model import LogprobModel

pytestmark = pytest.mark.engine


def batch() -> Batch:
    """Three answers of four tokens to prompts of two, with experts that no router would choose."""
    random = np.random.default_rng(0)

    def experts(count: int) -> np.ndarray:
        return np.argsort(random.random((count, 2, 4)), -1)[..., :2].astype(np.int16)

    return batch_of(
        count=12,
        rows=3,
        prompt_tokens=random.integers(0, 32, 6).astype(np.int32),
        prompt_lengths=np.full(3, 2),
        tokens=random.integers(0, 32, 12).astype(np.int32),
        lengths=np.full(3, 4),
        logp_sampler=np.zeros(12, np.float32),
        experts=experts(12),
        prompt_experts=experts(6),
    )


def after_an_update(policy: torch.nn.Module, part: MicroBatch) -> dict[str, torch.Tensor]:
    """Plain torch."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    (-policy_pass(policy, part).logp.sum()).backward()
    optimizer.step()
    return {name: p.detach() for name, p in policy.model.named_parameters()}


@pytest.mark.parametrize("stage", [0, 3])
def test_an_update_with_replayed_experts_is_that_of_plain_torch(team: Team, stage: int):
    from penstock.learner.engine import Engine

    part = MicroBatch.of(batch(), [0, 1, 2], torch.device("cpu"))
    expected = after_an_update(LogprobModel(qwen()), part)
    section = LearnerSection(
        zero_stage=stage, gradient_checkpointing=True, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, max_grad_norm=1e9
    )
    engine = Engine(qwen(), section, 1)
    free = MicroBatch.of(batch().with_columns(experts=np.full((12, 2, 2), -1, np.int16)), [0], torch.device("cpu"))
    with torch.no_grad():
        policy_pass(engine, free)  # nothing of an earlier pass is left
    engine.backward(-policy_pass(engine, part).logp.sum(), last=True)
    assert engine.step(1e-2).applied
    found = engine.snapshot(True)
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name
