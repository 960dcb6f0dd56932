"""The DeepSpeed wrapper: the only file that knows the engine.

What DeepSpeed does to a loss of its own accord, dividing gradients by the number of ranks, is undone in
`Engine.backward` and nowhere else: callers hand in their share of a sum whose denominators are global already.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Built once per machine, takes about a minute; the default lies in a folder that does not last.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "penstock" / "torch_extensions"))

import deepspeed
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from penstock.learner.config import TrainingSection
from penstock.learner.critic import ValueModel
from penstock.learner.routing import checkpoint_contexts
from penstock.learner.universal import STATE, allowed, tensors_only
from penstock.services.contracts import PenstockError
from penstock.services.logprob_model import LogprobModel

deepspeed.utils.logger.setLevel("WARNING")


class Update(NamedTuple):
    """What became of one optimizer update."""

    applied: bool
    """False when a gradient was infinite or undefined: no rank has changed any weight."""
    grad_norm: float
    """Before clipping; infinite when not applied."""


class Engine:
    """One rank's part of a model under training. All methods but `__call__` are collective: every rank calls them,
    in the same order and the same number of times.

    `model` is a Hugging Face causal language model, which becomes a `LogprobModel` here unless it is one already, or a
    `ValueModel`; with the same weights on every rank. The torch process group must exist (`ranks.join`).
    """

    def __init__(self, model: nn.Module, section: TrainingSection, ranks: int) -> None:
        self._ranks = ranks
        self._stage = section.zero_stage
        model = model if isinstance(model, LogprobModel | ValueModel) else LogprobModel(model)
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self.updates = 0
        """Optimizer updates applied so far; goes into checkpoints."""
        self.module: Any = model.model if isinstance(model, LogprobModel) else model
        """The Hugging Face model itself, or the value model; its parameters are empty at ZeRO stage 3."""
        self._tied = frozenset(getattr(self.module, "all_tied_weights_keys", {}))
        model.to(getattr(torch, section.dtype)).train()
        _turn_dropout_off(model)
        if section.gradient_checkpointing:
            settings = {"use_reentrant": False, "context_fn": checkpoint_contexts}
            self.module.gradient_checkpointing_enable(settings)  # type: ignore[operator]
        optimizer = torch.optim.AdamW(
            _decayed_and_not(model, section.weight_decay),
            lr=section.learning_rate,
            betas=section.betas,
            eps=section.eps,
            fused=self.device.type == "cuda" or None,
        )
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=_deepspeed_config(section, sum(p.numel() for p in model.parameters())),
        )
        self._engine.checkpoint_engine = _CheckpointFiles()

    def __call__(self, **inputs: Any) -> Any:
        """Forward pass of the LogprobModel or ValueModel, on tensors of this device."""
        return self._engine(**inputs)

    def backward(self, share: Tensor, last: bool) -> None:
        """Add the gradient of this rank's `share` of the loss. The shares of all ranks, over all calls up to and
        including the `last`, sum to the loss."""
        self._engine.set_gradient_accumulation_boundary(last)
        # Here, and only here: DeepSpeed averages over ranks, the loss is a sum over ranks.
        self._engine.backward(share * self._ranks)

    def step(self, learning_rate: float) -> Update:
        """One optimizer update from the gradients added since the last one. All ranks apply it, or none does."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._stage == 0:
            # DeepSpeed checks gradients from stage 1 on; at stage 0 every rank has them all and sees the same.
            norm = float(nn.utils.get_total_norm(self._gradients()))
            if not math.isfinite(norm):
                self._engine.zero_grad()
                return Update(False, float("inf"))
            self._engine.step()
            self.updates += 1
            return Update(True, norm)
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        self.updates += applied
        return Update(applied, float(self._engine.get_global_grad_norm()) if applied else float("inf"))

    def gradient_is_finite(self) -> bool:
        """Whether `step` would apply an update; the same on every rank."""
        squares = torch.zeros(1, dtype=torch.float64, device=self.device)
        for gradient in self._gradients():
            squares += torch.linalg.vector_norm(gradient.float()).double().square()
        torch.distributed.all_reduce(squares)
        # DeepSpeed sums squares in float32; what would overflow there is skipped there.
        return float(squares) < torch.finfo(torch.float32).max

    def discard(self) -> None:
        """Drop the gradients added since the last update; no weight changes."""
        gradients = self._gradients()
        for gradient in gradients:
            gradient.fill_(torch.inf)
        # What DeepSpeed has staged, it clears itself when it sees that an update cannot be applied.
        self.step(0.0)
        for gradient in gradients:
            # But for the padding of a shard, which nothing ever writes to.
            gradient.zero_()

    def _gradients(self) -> list[Tensor]:
        """This rank's part of the gradients, after the last backward pass: all of them at stage 0."""
        if self._stage == 0:
            return [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        optimizer = self._engine.optimizer
        if not hasattr(optimizer, "averaged_gradients"):  # bfloat16 at stage 1 is another optimizer
            return list(optimizer.fp32_groups_gradient_flat_partition)
        return [g for group in optimizer.averaged_gradients.values() for g in group or () if g is not None]

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding, as the model's configuration says."""
        return int(self.module.config.get_text_config().vocab_size)

    def full_weights(self, part: nn.Module | None = None) -> Iterator[tuple[str, Tensor]]:
        """Whole tensors by their Hugging Face names, one after the other, valid until the next is asked for. A tied
        output layer is left out, and so is a value head; `part`: of that part of the engine's model instead. Every
        rank must exhaust the iterator."""
        module = self.module if part is None else part
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                gathered = (
                    deepspeed.zero.GatheredParameters([parameter]) if self._stage == 3 else contextlib.nullcontext()
                )
                with gathered:
                    if name not in self._tied:
                        yield name, parameter.detach()
            parameters = {name for name, _ in module.named_parameters()}
            for name, buffer in module.state_dict(keep_vars=True).items():
                if name not in parameters | self._tied and not isinstance(buffer, nn.Parameter):
                    yield name, buffer

    @property
    def value_head(self) -> nn.Module | None:
        """On the policy's last hidden state, where it has one."""
        head: nn.Module | None = getattr(self._engine.module, "value_head", None)
        return head

    def snapshot(
        self, wanted: bool, alive: Callable[[], None] = lambda: None, part: nn.Module | None = None
    ) -> dict[str, Tensor]:
        """A copy of `full_weights` on the CPU where `wanted`; nothing on ranks that only help to gather it.
        `alive` is called for every tensor."""
        copies = {}
        for name, tensor in self.full_weights(part):
            alive()
            if wanted:
                copies[name] = tensor.to("cpu", copy=True)
        return copies

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and the number of updates into `folder`, every rank its part."""
        self._engine.save_checkpoint(str(folder), tag=STATE, client_state={"updates": self.updates}, save_latest=False)

    def load(self, folder: Path, universal: bool = False) -> None:
        """Inverse of `save`, for the same ZeRO stage and the same number of ranks; `universal`: in the form that any
        number can load (`universal.restore`). Raises PenstockError."""
        try:
            with _universal(self._engine) if universal else contextlib.nullcontext():
                found, state = self._engine.load_checkpoint(str(folder), tag=STATE)
        except Exception as error:
            raise PenstockError(f"cannot load the checkpoint {folder}: {type(error).__name__}: {error}") from error
        if found is None:
            raise PenstockError(f"{folder} holds no state of the learner: {folder / STATE} is missing or incomplete")
        self.updates = int(state["updates"])


class _CheckpointFiles(TorchCheckpointEngine):  # type: ignore[misc]  # no types there
    """DeepSpeed's checkpoint files, read with a list of what may be in them instead of free unpickling."""

    def save(self, state_dict: Any, path: str) -> None:
        super().save(_without_enums(state_dict), path)

    def load(self, path: str, map_location: Any = None) -> Any:
        torch.serialization.add_safe_globals(allowed())
        return torch.load(path, map_location=map_location, weights_only=True)


@contextlib.contextmanager
def _universal(engine: Any) -> Iterator[None]:
    """Inside, the engine takes what it loads for a universal checkpoint. Its code for that reads files by itself, so
    torch is told to allow no more in them than elsewhere. It gives every group of parameters the settings of the first,
    which decays what must not be decayed, and with ZeRO 3 all share one counter of updates, which each moves on."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    engine._config.load_universal_checkpoint = True
    try:
        with tensors_only():
            yield
    finally:
        engine._config.load_universal_checkpoint = False
    for group, own in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(own)
    for state in getattr(engine.optimizer, "optimizer", engine.optimizer).state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].clone()


def _without_enums(state: Any) -> Any:
    """The same with members of enumerations as the numbers they are: before Python 3.11.4 one is pickled as a call of
    `getattr`, which nobody should have to allow."""
    if isinstance(state, Enum):
        return state.value
    if type(state) in (list, tuple):
        return type(state)(_without_enums(value) for value in state)
    if isinstance(state, dict):
        copied = copy.copy(state)
        copied.update({key: _without_enums(value) for key, value in state.items()})
        return copied
    return state


def _turn_dropout_off(model: nn.Module) -> None:
    """The probability of a token must mean the same in the sampler, the reference and the learner."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]  # a plain number in every attention class


def _decayed_and_not(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed, vectors (norms, biases) are not."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _deepspeed_config(section: TrainingSection, parameters: int) -> dict[str, Any]:
    """One micro-batch per backward call, no scaling of its own; the caller says which backward call is the last."""
    # Buffers are allocated at this size, also for a small model; DeepSpeed wants an even number.
    bucket = max(2, min(parameters + parameters % 2, 50_000_000))
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": section.max_grad_norm,
        "steps_per_print": 2**31,
        "zero_optimization": {
            "stage": section.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "zero_allow_untested_optimizer": True,
    }
    if section.dtype == "bfloat16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
