"""From the sampler to the learner: what a real engine recorded, through the learner's own assembly and forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rollout_lab import Lab, finish, prompt_of

from penstock.learner.algorithms.bound import bind
from penstock.learner.assemble import Moment, assemble
from penstock.learner.config import AlgorithmSection
from penstock.learner.forward import policy_pass
from penstock.learner.micro import MicroBatch
from penstock.services.codec import decode, encode
from penstock.services.contracts import Request
from penstock.services.logprob_model import LogprobModel
from penstock.services.trajectory import Group, Sampling, Trajectory

pytestmark = pytest.mark.engine

PROMPTS = [[5, 6, 7, 8] * 3, [9, 4] * 9, [12] * 5]
FILTERS = [
    pytest.param(Sampling(max_tokens=20), id="no_filter"),
    pytest.param(Sampling(max_tokens=20, top_k=5), id="top_k"),
    pytest.param(Sampling(max_tokens=20, top_p=0.9, temperature=0.7), id="top_p"),
    pytest.param(Sampling(max_tokens=20, top_k=8, top_p=0.8), id="both"),
]


def groups_of(engine: Any, sampling: Sampling) -> list[Group]:
    """Four answers to each prompt, through bytes as in a run."""
    for i, tokens in enumerate(PROMPTS):
        for member in range(4):
            engine.submit(Request(f"{i}.{member}", prompt_of(tokens, i), sampling))
    done = finish(engine)
    groups = []
    for i, tokens in enumerate(PROMPTS):
        answers = [
            Trajectory(completion=done[f"{i}.{m}"], reward=float(m % 2), parts={"even": float(m % 2)}) for m in range(4)
        ]
        group = Group(prompt=prompt_of(tokens, i), sampling=sampling, trajectories=tuple(answers))
        groups.append(decode(encode(group), Group))
    return groups


@pytest.mark.parametrize("kind", ["dense", "experts"])
@pytest.mark.parametrize("sampling", FILTERS)
def test_the_learners_logprobs_are_the_samplers_where_weights_are_equal(
    kind: str, sampling: Sampling, lab: Lab, moe_lab: Lab, engine: Any, moe_engine: Any
):
    one, home = (engine, lab) if kind == "dense" else (moe_engine, moe_lab)
    groups = groups_of(one, sampling)
    moment = Moment(now=one.version, forks={}, max_lag=0, mask_beyond=False)
    batch = assemble(groups, bind(AlgorithmSection(name="grpo")), moment)
    assert (batch.kept_counts is not None) == sampling.filtered and (batch.experts is not None) == (kind == "experts")
    policy, checked = LogprobModel(home.models[0]), 0
    for rows in (list(range(0, len(batch), 2)), list(range(1, len(batch), 2))):
        part = MicroBatch.of(batch, rows, torch.device("cpu"))
        with torch.no_grad():
            found = policy_pass(policy, part).logp
        apart = (found - part.logp_sampler)[part.mask].abs()
        assert apart.max() < 1e-5
        checked += len(apart)
    known = sum(
        len(c.tokens) if (c := t.completion).kept is None else int((c.kept.counts > 0).sum())
        for g in groups
        for t in g.trajectories
    )
    assert checked == known and known > 0.5 * sum(len(t.completion.tokens) for g in groups for t in g.trajectories)
