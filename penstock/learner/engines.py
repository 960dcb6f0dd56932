"""The engines of a run: the policy's, and the value model's where it has a backbone of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.learner.algorithms.cells import OwnValue, ValueHead
from penstock.learner.schedule import learning_rate
from penstock.learner.state_files import Form
from penstock.services.contracts import PenstockError

if TYPE_CHECKING:
    import torch

    from penstock.learner.algorithms.cells import Value
    from penstock.learner.config import LearnerSection, TrainingSection
    from penstock.learner.engine import Engine
    from penstock.services.model_config import ModelSection

_CRITIC = "critic"


@dataclass(frozen=True)
class Engines:
    """Both are updated, or neither is. All methods are collective."""

    policy: Engine
    critic: Engine | None = None
    critic_learning_rate: float = 0.0
    """Peak; the schedule is the policy's."""

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def update(self, section: TrainingSection, policy_frozen: bool) -> dict[str, float]:
        """One update from the gradients added since the last one; what it was by metric, nothing when a gradient was
        infinite or undefined and so no weight has changed. `policy_frozen`: only the values have got gradients, which
        is the policy's engine still where they are a head on it."""
        training: dict[str, tuple[Engine, float]] = {}
        if self.critic is None or not policy_frozen:
            training["actor"] = (self.policy, section.learning_rate)
        if self.critic is not None:
            training["critic"] = (self.critic, self.critic_learning_rate)
        # An engine alone looks for itself; of two, each must know of the other's before it changes a weight.
        finite = [engine.gradient_is_finite() for engine, _ in training.values()] if len(training) > 1 else []
        if not all(finite):
            for engine, _ in training.values():
                engine.discard()
            return {}
        metrics: dict[str, float] = {}
        for name, (engine, peak) in training.items():
            rate = learning_rate(peak, section.schedule, engine.updates)
            update = engine.step(rate)
            if update.applied:
                metrics |= {f"{name}/grad_norm": update.grad_norm, f"{name}/lr": rate}
        return metrics

    @property
    def has_values(self) -> bool:
        return self.critic is not None or self.policy.value_head is not None

    def snapshot_values(self, wanted: bool, alive: Callable[[], None]) -> dict[str, torch.Tensor]:
        """A copy of the value model's weights on the CPU where `wanted`, or of the value head's under `value_head.`."""
        if self.critic is not None:
            return self.critic.snapshot(wanted, alive)
        head = self.policy.value_head
        found = {} if head is None else self.policy.snapshot(wanted, alive, part=head)
        return {f"value_head.{name}": tensor for name, tensor in found.items()}

    def save(self, folder: Path) -> None:
        """Write the state of both into `folder`, every rank its part."""
        self.policy.save(folder)
        if self.critic is not None:
            self.critic.save(folder / _CRITIC)

    def load(self, folder: Path, form: Form = Form.OWN) -> None:
        """Inverse of `save`, for the same engines; see `Engine.load`. Raises PenstockError."""
        self.policy.load(folder, form)
        if self.critic is not None:
            self.critic.load(folder / _CRITIC, form)


def build(model: ModelSection, section: LearnerSection, value: Value) -> Engines:
    """The engines of a run that starts from `model`; all ranks call it alike. Raises PenstockError."""
    from penstock.learner.critic import ValueModel
    from penstock.learner.engine import Engine
    from penstock.services.logprob_model import LogprobModel
    from penstock.services.models import load_model

    policy = LogprobModel(load_model(model, "float32"), value_head=isinstance(value, ValueHead))
    engine = Engine(policy, section, section.ranks)
    if not isinstance(value, OwnValue):
        return Engines(engine)
    start = model if value.path is None else model.model_copy(update={"path": value.path, "revision": None})
    critic = Engine(ValueModel(load_model(start, "float32").base_model), section, section.ranks)
    if critic.vocabulary < engine.vocabulary:
        raise PenstockError(
            f"algorithm.value.path: {start.path} knows {critic.vocabulary} tokens and the policy {engine.vocabulary}; "
            "name a model with the policy's tokenizer"
        )
    return Engines(engine, critic, value.learning_rate)
