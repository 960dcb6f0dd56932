"""The DeepSpeed wrapper: the only file that knows the engine.

What DeepSpeed does to a loss of its own accord, dividing gradients by the number of ranks, is undone in
`Engine.backward` and nowhere else: callers hand in their share of a sum whose denominators are global already.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Built once per machine, takes about a minute; the default lies in a folder that does not last.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "penstock" / "torch_extensions"))

import deepspeed

from penstock.learner.compiled import compile_layers
from penstock.learner.config import TrainingSection
from penstock.learner.critic import ValueModel
from penstock.learner.engine_files import CheckpointFiles, as_universal
from penstock.learner.routing import checkpoint_contexts
from penstock.learner.state_files import STATE, Form
from penstock.learner.whole import lay_sharded, lay_unsharded, of_universal, of_unsharded
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
        self.stage = section.stage(ranks)
        """Of ZeRO."""
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
        if section.compile:
            compile_layers(model.to(self.device), section.micro_batch_tokens)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=_optimizer(model, section),
            config=_deepspeed_config(section, self.stage, sum(p.numel() for p in model.parameters())),
        )
        if ranks == 1 and self.stage == 0:
            self._engine.enable_backward_allreduce = False  # it would copy all gradients there and back
        self._max_grad_norm = section.max_grad_norm
        self._engine.checkpoint_engine = CheckpointFiles()

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
        if self.stage == 0:
            # DeepSpeed checks gradients from stage 1 on; at stage 0 every rank has them all and sees the same.
            norm = nn.utils.get_total_norm(self._gradients())
            if not math.isfinite(float(norm)):
                self._engine.zero_grad()
                return Update(False, float("inf"))
            nn.utils.clip_grads_with_norm_(self._engine.module.parameters(), self._max_grad_norm, norm)
            self._engine.step()
            self.updates += 1
            return Update(True, float(norm))
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
        if self.stage == 0:
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
                    deepspeed.zero.GatheredParameters([parameter]) if self.stage == 3 else contextlib.nullcontext()
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

    def load(self, folder: Path, form: Form = Form.OWN) -> None:
        """Inverse of `save`, from what an engine of this stage on so many ranks has written, or from another `form`
        (`universal.restore` knows which). Raises PenstockError."""
        module, optimizer, state = self._engine.module, self._engine.optimizer, folder / STATE
        try:
            if form is Form.UNSHARDED:
                whole = of_unsharded(state, [name for group in _decayed_and_not(module) for name, _ in group])
                lay_sharded(whole, module, optimizer)
            elif form is Form.UNIVERSAL and self.stage == 0:
                whole = of_universal(state, [name for name, _ in module.named_parameters()])
                lay_unsharded(whole, module, optimizer)
            else:
                self.updates = self._load_own(folder, form)
                return
        except PenstockError:
            raise
        except Exception as error:
            raise PenstockError(f"cannot load the checkpoint {folder}: {type(error).__name__}: {error}") from error
        self.updates = whole.updates

    def _load_own(self, folder: Path, form: Form) -> int:
        """DeepSpeed's own way; the number of updates."""
        with as_universal(self._engine) if form is Form.UNIVERSAL else contextlib.nullcontext():
            found, state = self._engine.load_checkpoint(str(folder), tag=STATE)
        if found is None:
            raise PenstockError(f"{folder} holds no state of the learner: {folder / STATE} is missing or incomplete")
        return int(state["updates"])


def _turn_dropout_off(model: nn.Module) -> None:
    """The probability of a token must mean the same in the sampler, the reference and the learner."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]  # a plain number in every attention class


def _decayed_and_not(model: nn.Module) -> list[list[tuple[str, nn.Parameter]]]:
    """What is optimized: matrices, which are decayed, and vectors (norms, biases), which are not."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    def is_matrix(parameter: nn.Parameter) -> bool:
        return len(getattr(parameter, "ds_shape", parameter.shape)) >= 2  # where ZeRO 3 has sharded it already

    return [[each for each in trained if is_matrix(each[1]) == matrices] for matrices in (True, False)]


def _optimizer(model: nn.Module, section: TrainingSection) -> torch.optim.AdamW:
    """In one pass over the weights (fused), on a CPU, too."""
    decays = (section.weight_decay, 0.0)
    groups = [
        {"params": [p for _, p in group], "weight_decay": decay}
        for group, decay in zip(_decayed_and_not(model), decays, strict=True)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=section.learning_rate,
        betas=section.betas,
        eps=section.eps,
        fused=True,
    )


def _deepspeed_config(section: TrainingSection, stage: int, parameters: int) -> dict[str, Any]:
    """One micro-batch per backward call, no scaling of its own; the caller says which backward call is the last."""
    # Buffers are allocated at this size, also for a small model; DeepSpeed wants an even number.
    bucket = max(2, min(parameters + parameters % 2, 50_000_000))
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # At stage 0 `Engine.step` has the norm already.
        "gradient_clipping": section.max_grad_norm if stage else 0.0,
        "steps_per_print": 2**31,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "zero_allow_untested_optimizer": True,
    }
    if section.dtype == "bfloat16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
