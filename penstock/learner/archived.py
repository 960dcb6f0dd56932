"""An archived step in memory: what was trained on, and the models at the weights it started from, in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from penstock.learner import archive
from penstock.learner.archivist import moment_of
from penstock.learner.assemble import Moment
from penstock.learner.batch import Batch
from penstock.learner.critic import ValueModel
from penstock.services.contracts import PenstockError
from penstock.services.logprob_model import LogprobModel
from penstock.services.model_config import ModelSection
from penstock.services.models import load_model, load_weights
from penstock.services.trajectory import Group
from penstock.services.versions import Version

HEAD = "value_head."
"""How names of tensors begin in `archive.VALUE` when it holds a head only."""


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
        """Put the weights that the step in `step` started from into policy and value model. Raises FileNotFoundError,
        and PenstockError for damage."""
        load_weights(self.policy.model, _tensors(step / archive.POLICY / archive.WEIGHTS))
        self._put_values(_values(step))

    def _put_values(self, values: Mapping[str, Tensor]) -> None:
        if self.critic is not None:
            load_weights(self.critic, values)
        elif self.policy.value_head is not None:
            load_weights(self.policy.value_head, {name.removeprefix(HEAD): tensor for name, tensor in values.items()})


def _values(step: Path) -> dict[str, Tensor]:
    """Weights of the step's value model or value head; empty where it has neither."""
    file = step / archive.VALUE / archive.WEIGHTS
    return _tensors(file) if file.parent.is_dir() else {}


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise PenstockError(f"{file} is damaged: {error}") from error
    return tensors


def _policy(step: Path, section: ModelSection) -> Any:
    """In float32, whatever the run computed in: what is compared here are algorithms and not number formats."""
    if not section.trust_remote_code:
        return load_model(section.model_copy(update={"path": str(step / archive.POLICY), "revision": None}), "float32")
    model = load_model(section, "float32")  # its code lies where the run started from
    load_weights(model, _tensors(step / archive.POLICY / archive.WEIGHTS))
    return model


def _critic(folder: Path, section: ModelSection) -> ValueModel:
    from transformers import AutoConfig, AutoModel

    given = {"trust_remote_code": section.trust_remote_code}
    config = AutoConfig.from_pretrained(folder, local_files_only=True, **given)
    config.dtype = torch.float32
    return ValueModel(AutoModel.from_config(config, attn_implementation=section.attn_implementation, **given))
