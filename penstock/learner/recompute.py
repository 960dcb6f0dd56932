"""An archived step computed anew, in one process of plain torch: what gradient another algorithm makes of its groups.

Assembly, the pass over the batch at the start and the loss are the train step's own functions; only what DeepSpeed
does, adding gradients up, is done by autograd here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from penstock.learner import archive, deal
from penstock.learner.algorithms.bound import KL_COEFFICIENT, OBJECTIVE_COEFFICIENT, BoundAlgorithm, bind
from penstock.learner.archivist import moment_of
from penstock.learner.assemble import Moment, assemble
from penstock.learner.batch import Batch
from penstock.learner.config import AlgorithmSection
from penstock.learner.critic import ValueModel
from penstock.learner.deal import Share
from penstock.learner.diagnostics import step_metrics
from penstock.learner.micro import MicroBatch
from penstock.learner.ranks import Team
from penstock.learner.start import begin
from penstock.learner.step import micro_losses
from penstock.learner.tally import Tally
from penstock.services.contracts import PenstockError
from penstock.services.logprob_model import LogprobModel
from penstock.services.logprobs import plan_micro_batches
from penstock.services.model_config import ModelSection
from penstock.services.models import load_model, load_weights
from penstock.services.trajectory import Group
from penstock.services.versions import Version

_ALONE = Team(0, 1, 0.0, None)
HEAD = "value_head."
"""How names of tensors begin in `archive.VALUE` when it holds a head only."""


class Unfit(PenstockError):
    """An algorithm that needs what the archive does not have; the text says what."""


@dataclass(frozen=True)
class Step:
    """An archived step, read."""

    folder: Path
    version: Version
    """That it ended in."""
    moment: Moment
    batch: Batch
    """As it was trained on, with the learner's own log-probs."""
    groups: list[Group]
    facts: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Step:
        """Raises FileNotFoundError and BatchError where it is gone, or going, or has no weights."""
        version, batch, facts = archive.read(folder)
        return cls(folder, version, moment_of(facts), batch, archive.read_groups(folder), facts)

    @property
    def longest(self) -> int:
        """Tokens that an answer could have had."""
        return max(group.sampling.max_tokens for group in self.groups)


@dataclass(frozen=True)
class Models:
    """The models of a step, at the weights it started from. Takes the place of `Engines` where nothing is updated."""

    policy: LogprobModel
    critic: ValueModel | None
    device: torch.device

    @property
    def has_values(self) -> bool:
        return self.critic is not None or self.policy.value_head is not None

    @classmethod
    def load(cls, step: Path, section: ModelSection, device: torch.device) -> Models:
        """`section` is the run's. Raises FileNotFoundError and ModelError."""
        values = _values(step)
        head = bool(values) and all(name.startswith(HEAD) for name in values)
        policy = LogprobModel(_policy(step, section), value_head=head)
        critic = _critic(step / archive.VALUE, section) if values and not head else None
        models = cls(policy.to(device), None if critic is None else critic.to(device), device)
        models._put_values(values)
        return models

    def advance(self, step: Path) -> None:
        """Put the weights that the step in `step` started from into policy and value model."""
        load_weights(self.policy.model, load_file(step / archive.POLICY / archive.WEIGHTS))
        self._put_values(_values(step))

    def _put_values(self, values: Mapping[str, Tensor]) -> None:
        if self.critic is not None:
            load_weights(self.critic, values)
        elif self.policy.value_head is not None:
            load_weights(self.policy.value_head, {name.removeprefix(HEAD): tensor for name, tensor in values.items()})


def _values(step: Path) -> dict[str, Tensor]:
    """Weights of the step's value model or value head; empty where it has neither."""
    file = step / archive.VALUE / archive.WEIGHTS
    return load_file(file) if file.parent.is_dir() else {}


def _policy(step: Path, section: ModelSection) -> Any:
    """In float32, whatever the run computed in: what is compared here are algorithms and not number formats."""
    if not section.trust_remote_code:
        return load_model(section.model_copy(update={"path": str(step / archive.POLICY), "revision": None}), "float32")
    model = load_model(section, "float32")  # its code lies where the run started from
    load_weights(model, load_file(step / archive.POLICY / archive.WEIGHTS))
    return model


def _critic(folder: Path, section: ModelSection) -> ValueModel:
    from transformers import AutoConfig, AutoModel

    given = {"trust_remote_code": section.trust_remote_code}
    config = AutoConfig.from_pretrained(folder, local_files_only=True, **given)
    config.dtype = torch.float32
    return ValueModel(AutoModel.from_config(config, attn_implementation=section.attn_implementation, **given))


@dataclass(frozen=True)
class Outcome:
    """What an algorithm makes of a step."""

    metrics: dict[str, float]
    gradient: list[Tensor]
    """Of the policy, parameter by parameter."""


def outcome(
    step: Step,
    models: Models,
    section: AlgorithmSection,
    token_budget: int,
    following: Path | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Outcome:
    """The gradient of the whole batch in one update, at the weights the step started from; with `following`, the
    archived step after it, at the weights that this one has led to. Raises Unfit."""
    algorithm = _algorithm(step, models, section)
    try:
        batch = assemble(step.groups, algorithm, step.moment)
    except PenstockError as error:
        raise Unfit(str(error)) from error
    batch = deal.weigh(batch, [range(len(batch))], algorithm.reduction)
    share = Share(batch, [plan_micro_batches(batch.row_tokens.tolist(), token_budget)], [[0]])
    start = begin(models, share, algorithm, _ALONE, keep_logprobs=True, alive=alive)
    if following is not None:
        models.advance(following)
    models.policy.zero_grad()
    tally, pull = Tally(), Tally()
    for part in start.parts[0]:
        alive()
        seen: list[Tensor] = []
        losses = micro_losses(models, part, _watched(algorithm, seen), start.bound, False, tally)
        assert losses.policy is not None, "the policy is not frozen here"
        losses.policy.backward()  # type: ignore[no-untyped-call]
        _add_pull(pull, part, seen)
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in models.policy.parameters()]
    models.policy.zero_grad(set_to_none=True)
    metrics = step_metrics(tally.over(_ALONE), 1) | start.metrics | _effective(pull)
    return Outcome(metrics, gradient)


def _algorithm(step: Step, models: Models, section: AlgorithmSection) -> BoundAlgorithm:
    own = AlgorithmSection.model_validate(step.facts["algorithm"])
    # Where a coefficient of the run has moved, it has moved for all that share its cell.
    shared = {KL_COEFFICIENT: section.kl == own.kl, OBJECTIVE_COEFFICIENT: section.objective == own.objective}
    algorithm = bind(section).at({name: b for name, b in step.facts["coefficients"].items() if shared.get(name)})
    if algorithm.value is None:
        return algorithm
    if not models.has_values:
        raise Unfit("it needs values, and the archive has no value model")
    if section.value.own_backbone and models.critic is None:
        # Values of a head stand in for those of a model of its own, whose loss would not move the policy.
        return replace(algorithm, value=replace(algorithm.value, coefficient=0.0))
    return algorithm


def _watched(algorithm: BoundAlgorithm, seen: list[Tensor]) -> BoundAlgorithm:
    """The same algorithm; the gradient at every log-prob is added to `seen` in the backward pass."""

    def objective(logp: Tensor, *given: Tensor) -> Any:
        if logp.requires_grad:
            logp.register_hook(seen.append)  # type: ignore[no-untyped-call]
        return algorithm.objective(logp, *given)

    return replace(algorithm, objective=objective)


def _add_pull(pull: Tally, part: MicroBatch, seen: Sequence[Tensor]) -> None:
    """How hard every token pulls at the policy for its advantage and its share of the reduction: the weight that the
    algorithm really gives it, whatever part of it that comes from."""
    due = part.weights.unsqueeze(-1) * part.advantages.abs()
    counts = part.mask & (due > 0)
    given = seen[0].abs() if seen else torch.zeros_like(due)
    weights = torch.where(counts, given / torch.where(counts, due, 1.0), 0.0).double()
    pull.add("first", weights, counts)
    pull.add("second", weights.square(), counts)


def _effective(pull: Tally) -> dict[str, float]:
    totals = pull.over(_ALONE)
    count, first, second = totals.count("first"), totals.sum("first"), totals.sum("second")
    return {"whatif/ess": first**2 / (count * second) if second > 0 else 0.0}


def norm(gradient: Sequence[Tensor]) -> float:
    """Of all parameters together; sums in doubles."""
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradient))


def cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Of the angle between two gradients; NaN where one of them is zero."""
    product = sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))
    length = norm(one) * norm(other)
    return product / length if length > 0 else float("nan")
