"""Loss and gradient of every row do not depend on order, padding, micro-batches or ranks: 1e-6 relative, in float64.

From groups to gradients with the learner's own assembly, dealing and step; only the engine is left out, and the ranks
are threads. `test_denominators` and `test_step_ppo` do the same on DeepSpeed.
"""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import builders
import numpy as np
import pytest
import torch
from step_parts import bare_models

from penstock.learner import deal, micro
from penstock.learner.algorithms import table
from penstock.learner.algorithms.bound import bind
from penstock.learner.assemble import Moment, assemble
from penstock.learner.config import AlgorithmSection
from penstock.learner.start import begin
from penstock.learner.step import micro_losses
from penstock.learner.tally import Tally
from penstock.services.logprobs import PaddedRows, pad_rows
from penstock.services.trajectory import Group, Sampling, Trajectory
from penstock.services.versions import FIRST

TOLERANCE = 1e-6
MORE = {
    "grpo, everything on": {
        "name": "grpo",
        "kl": {"coefficient": 0.1, "estimator": "unbiased"},
        "reject": {"kind": "second_moment", "max_moment": 0.01},
        "entropy_coefficient": 0.01,
    },
    "rloo, KL in the reward, weights by answer": {
        "name": "rloo",
        "kl": {"coefficient": 0.1},
        "trust": {"kind": "sequence_is", "max_weight": 1.5},
    },
    "ppo, V-trace, value head": {
        "name": "ppo",
        "credit": {"kind": "vtrace"},
        "trust": {"kind": "none"},
        "value": {"kind": "head"},
    },
    "dapo, off-policy answers left out": {
        "name": "dapo",
        "reject": {"kind": "off_policy_sequence", "max_divergence": 0.01},
        "trust": {"kind": "masked_is"},
    },
}


def section(name: str) -> AlgorithmSection:
    given = dict(MORE.get(name, {"name": name}))
    if table.find(given["name"]).reduction.kind == "fixed_length":
        given["reduction"] = {"budget": 8}
    return AlgorithmSection.model_validate(given)


@functools.cache
def groups_of(count=3, members=3) -> list[Group]:
    """Answers of lengths 1 to 8, a tool's tokens in the middle of the longer ones, one member unscored, one group
    without signal."""
    random = np.random.default_rng(3)
    made = []
    for index in range(count):
        trajectories = []
        for member in range(members):
            length = int(random.integers(1, 9))
            actions = np.ones(length, np.bool_)
            actions[2:4] = length < 5
            completion = builders.completion(
                tokens=random.integers(0, 32, length),
                logprobs=np.where(actions, random.normal(-3.4, 0.3, length), -99.0).tolist(),
                actions=actions,
            )
            reward = 1.0 if index == 0 else float(random.normal())
            scored = (index, member) != (1, 1)
            reference = (completion.logprobs + random.normal(0, 0.3, length)).astype(np.float32)
            trajectories.append(
                Trajectory(
                    completion=completion,
                    reward=reward if scored else None,
                    parts={"exact": reward if scored else None},
                    unscored=None if scored else "reward 'exact': timed out after 5.0 s",
                    reference_logprobs=reference,
                )
            )
        prompt = builders.prompt(index, tokens=random.integers(0, 32, 1 + index % 3))
        made.append(Group(prompt=prompt, sampling=Sampling(max_tokens=8), trajectories=tuple(trajectories)))
    return made


@dataclass(frozen=True)
class Layout:
    """How a step's work is laid out."""

    ranks: int = 1
    tokens: int = 10_000
    """Of a micro-batch."""
    groups: tuple[int, ...] = (0, 1, 2)
    members: tuple[int, ...] = (0, 1, 2)
    pad: int = 0
    wider: int = 0
    """More columns of padding."""


LAYOUTS = {
    "groups permuted": Layout(groups=(2, 0, 1)),
    "members permuted": Layout(members=(2, 0, 1)),
    "micro-batches of a few rows": Layout(tokens=24),
    "micro-batches of one row": Layout(tokens=1),
    "two ranks": Layout(ranks=2),
    "three ranks in micro-batches": Layout(ranks=3, tokens=24),
    "more ranks than rows": Layout(ranks=9),
    "wider padding": Layout(wider=7),
    "another padding token": Layout(pad=31, tokens=40),
    "all at once": Layout(2, 30, (1, 2, 0), (1, 2, 0), 17, 3),
}


class ThreadedTeam:
    """One rank's place in a team of threads."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, slots: list) -> None:
        self.rank, self.size, self.leads = rank, size, rank == 0
        self._barrier, self._slots = barrier, slots

    def _all(self, mine):
        self._slots[self.rank] = mine
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def sum(self, values):
        return np.sum(self._all(values), axis=0)

    def max(self, values):
        return np.max(self._all(values), axis=0)

    def gather(self, payload):
        found = self._all(payload)
        return found if self.leads else []

    def announce(self, message):
        return self._all(message)[0]


def team_of(size: int) -> list[ThreadedTeam]:
    barrier, slots = threading.Barrier(size, timeout=60), [None] * size
    return [ThreadedTeam(rank, size, barrier, slots) for rank in range(size)]


def padding(layout: Layout):
    """`pad_rows` with another token, and more of it."""

    def padded(rows, device="cpu") -> PaddedRows:
        def more(column, value):
            return torch.nn.functional.pad(column, (0, layout.wider), value=value)

        found = pad_rows(rows, pad=layout.pad, device=device)
        return replace(
            found,
            tokens=more(found.tokens, layout.pad),
            attention=more(found.attention, False),
            targets=more(found.targets, layout.pad),
            responses=more(found.responses, False),
        )

    return padded


@functools.cache
def models_of(values: str, moved=0.0):
    """In float64, of one layer; `moved` ones are those of a later update, so that ratios are not 1."""
    models = bare_models(values, moved=moved, num_hidden_layers=1)
    for model in (models.policy, models.critic):
        if model is not None:
            model.double()
    return models


def outcome(name: str, layout: Layout) -> dict[str, torch.Tensor]:
    """Losses, the rejection's bound and gradients of one mini-batch, all ranks' shares together."""
    algorithm = section(name)
    bound = bind(algorithm)
    groups = [groups_of()[i] for i in layout.groups]
    groups = [
        Group(prompt=g.prompt, sampling=g.sampling, trajectories=tuple(g.trajectories[i] for i in layout.members))
        for g in groups
    ]
    batch = assemble(groups, bound, Moment(FIRST, {}, 0, False))
    minis = [list(range(len(batch)))]
    shares = deal.deal(deal.weigh(batch, minis, bound.reduction), minis, layout.ranks, layout.tokens, 1, 0)
    old, models = models_of(algorithm.value.kind), models_of(algorithm.value.kind, moved=0.01)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(layout.ranks) as threads:
        patch.setattr(micro, "pad_rows", padding(layout))
        starts = list(
            threads.map(lambda share, team: begin(old, share, bound, team, True), shares, team_of(layout.ranks))
        )
    losses = [
        loss
        for start in starts
        for part in start.parts[0]
        for loss in micro_losses(models, part, bound, start.bound, False, Tally())
        if loss is not None
    ]
    total = torch.stack(losses).sum()
    found = {"loss": total.detach()}
    if np.isfinite(starts[0].bound):
        found["bound"] = torch.tensor(starts[0].bound)
    named = {
        f"{place} {key}": parameter
        for place, model in (("policy", models.policy), ("critic", models.critic))
        for key, parameter in (model.named_parameters() if model is not None else ())
    }
    return found | dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))


@pytest.mark.parametrize("name", [*sorted(table.rows()), *MORE])
def test_loss_and_gradient_do_not_depend_on_the_layout(name):
    expected = outcome(name, Layout())
    largest = max(float(value.abs().max()) for key, value in expected.items() if " " in key)
    assert largest > 1e-4
    for title, layout in LAYOUTS.items():
        found = outcome(name, layout)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            scale = largest if " " in key else abs(float(value))
            assert float((found[key] - value).abs().max()) <= TOLERANCE * scale, f"{title}: {key}"


def test_the_rejection_of_the_rows_above_rejects_something():
    assert "bound" in outcome("grpo, everything on", Layout())
