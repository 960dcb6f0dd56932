"""Loading weights into a vLLM model that is in use: the engine's own way, and on a CPU a shorter one.

The engine's own reload builds every layer anew, copies the checkpoint's tensors into it, has the layer prepare them
for its kernels, and copies the result to where the old one was. On a CPU most layers keep nothing but a packed copy,
which `Plan` makes from the checkpoint's tensors at once. Which part of which tensor goes where is recorded in a reload
of the engine's own (`vllm_recording`), and done again from then on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, cast

import torch
from vllm.model_executor.layers.attention import Attention, is_deferred_attention_layer
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionImplBase

from penstock.rollout.vllm_recording import Named, NotRepeatable, Recording, Seen, view_of

log = logging.getLogger(__name__)


class Loader:
    """Loads weights into the model of one of the engine's processes."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._plan: Plan | None = None
        # On AMD's Zen a layer may keep the tensor it is given, which is none of the engine's here.
        self._may_learn = current_platform.is_cpu() and not current_platform.is_zen_cpu()

    def load(self, tensors: Named) -> None:
        """Replace the model's weights by these, in checkpoint format."""
        model = self._runner.get_model()
        if self._plan is not None and self._plan.fits(tensors):
            self._plan.load(tensors)
            self._reset()
        else:
            self._load_as_the_engine_does(model, tensors)
        if current_platform.is_cpu():
            repack_output_layers(model)
            repack_experts(model)

    def _load_as_the_engine_does(self, model: torch.nn.Module, tensors: Named) -> None:
        if not self._may_learn:
            self._runner.reload_weights(weights_iterator=iter(tensors))
            return
        initialize_layerwise_reload(model)
        recording = Recording(model, tensors)
        with recording:
            cast(Any, model).load_weights(iter(tensors))
        finalize_layerwise_reload(model, self._runner.model_config)
        self._reset()
        try:
            _attention_must_do_nothing(model)
            self._plan = Plan(recording)
        except (NotRepeatable, AttributeError, RuntimeError) as reason:  # the weights are there; only the plan is not
            self._may_learn, self._plan = False, None
            log.info("weights will be loaded by the engine's own reload: %s", reason)

    def _reset(self) -> None:
        """What the engine derived from the weights before, as its own reload ends."""
        self._runner.reset_lora_state()
        self._runner.reset_encoder_cache()
        self._runner.reset_mm_cache()


@dataclass(frozen=True)
class Packed:
    """A linear layer that keeps its weight in its kernel's layout only."""

    layer: Any
    seen: Seen

    def load(self, tensors: dict[str, torch.Tensor], scratch: torch.Tensor) -> None:
        whole = self._as_given(tensors)
        if whole is None:
            whole = scratch[: self.seen.whole.numel()].view(self.seen.whole.shape)
            self.seen.repeat(whole, tensors)
        self.layer.weight = torch.nn.Parameter(whole, requires_grad=False)
        self.layer.quant_method.process_weights_after_loading(self.layer)
        if self.layer.weight.numel():
            raise RuntimeError(f"{type(self.layer).__name__} did not pack the weight that it packed before")

    def _as_given(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """The checkpoint's tensor, where that is the whole weight as it is."""
        whole, (piece, *more) = self.seen.whole, self.seen.pieces
        given = tensors[piece.source]
        alike = given.dtype == whole.dtype and given.shape == whole.shape
        return given if alike and not more and piece.taken == piece.placed == view_of(whole, 0) else None


class Plan:
    """How a load that was recorded is done again with other tensors. Raises NotRepeatable."""

    def __init__(self, recording: Recording) -> None:
        recording.must_be_complete()
        self._expected = _layout(recording.tensors)
        self._packed: list[Packed] = []
        self._live: list[tuple[torch.Tensor, Seen]] = []
        for (layer, name), seen in recording.seen.items():
            _must_be_ordinary(layer, name, seen)
            if not seen.pieces:
                continue
            live = getattr(layer, name)
            linear = type(getattr(layer, "quant_method", None)) is UnquantizedLinearMethod
            if not linear or name != "weight":
                self._live.append((_same_layout(live, seen, name), seen))
            elif not live.numel() and seen.whole.is_contiguous() and not seen.filled:
                self._packed.append(Packed(layer, seen))
            else:
                raise NotRepeatable(f"a linear layer ({type(layer).__name__}) does not pack its weight, or pads it")
        self._largest = max((packed.seen.whole.numel() for packed in self._packed), default=0)

    def fits(self, tensors: Named) -> bool:
        """Whether these are of the names, shapes and types that were recorded."""
        return _layout(tensors) == self._expected

    @torch.no_grad()
    def load(self, tensors: Named) -> None:
        """Put them where the recorded ones went."""
        given = dict(tensors)
        for live, seen in self._live:
            seen.repeat(live.data, given)
        scratches: dict[torch.dtype, torch.Tensor] = {}
        for packed in self._packed:
            dtype = packed.seen.whole.dtype
            if dtype not in scratches:
                scratches[dtype] = torch.empty(self._largest, dtype=dtype)
            packed.load(given, scratches[dtype])


def _layout(tensors: Named) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype, tensor.is_contiguous()) for name, tensor in tensors}


def _must_be_ordinary(layer: Any, name: str, seen: Seen) -> None:
    """Its elements come from one place each, without any computing; and its layer prepares nothing, unless it is a
    linear or an embedding layer."""
    what = f"{name} of {type(layer).__name__}"
    if seen.others:
        raise NotRepeatable(f"{what} was written by {', '.join(sorted(set(seen.others)))}")
    if not seen.pieces:
        return
    quant = getattr(layer, "quant_method", None)
    if not (quant is None or type(quant) in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)):
        raise NotRepeatable(f"{what} is prepared by {type(quant).__name__}")
    if is_deferred_attention_layer(layer):
        raise NotRepeatable(f"{what} belongs to an attention layer")
    times = torch.zeros(seen.whole.numel(), dtype=torch.uint8).as_strided(seen.whole.shape, seen.whole.stride())
    for placed in [*(piece.placed for piece in seen.pieces), *seen.filled]:
        placed.of(times).add_(1)
    if not times.eq(1).all():
        raise NotRepeatable(f"{what} is written more than once, or not in full")


def _same_layout(live: torch.Tensor, seen: Seen, name: str) -> torch.Tensor:
    """The model's tensor, which keeps what it is given as it is."""
    if (live.shape, live.dtype, live.stride()) != (seen.whole.shape, seen.whole.dtype, seen.whole.stride()):
        raise NotRepeatable(f"{name} is kept otherwise than it is loaded")
    return live


def _attention_must_do_nothing(model: torch.nn.Module) -> None:
    """Some attention computes matrices of its own from other layers' weights when a reload ends."""
    for layer in model.modules():
        if is_deferred_attention_layer(layer):
            impl = type(getattr(layer, "impl", None))
            own = getattr(impl, "process_weights_after_loading", None)
            if type(layer) is not Attention or own is not AttentionImplBase.process_weights_after_loading:
                raise NotRepeatable(f"{type(layer).__name__} prepares itself when weights are loaded")


def repack_output_layers(model: Any) -> None:
    """Pack the output layers again from the weights they should have now.

    On CPU vLLM computes logits with a packed copy of the output layer's weight. A reload replaces the weight and
    not the copy, and with tied embeddings not even the weight, without a word. Some models (Gemma 2, Command R) have
    no output layer, and compute logits with the input's.
    """
    layers = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    inputs = [m for m in layers if not isinstance(m, ParallelLMHead)]
    heads = [m for m in layers if isinstance(m, ParallelLMHead)]
    for head in heads or inputs:
        if head in heads and getattr(model.config, "tie_word_embeddings", False):
            cast(Any, head).tie_weights(next(m for m in inputs if m.weight.shape == head.weight.shape))
        cast(Any, head.quant_method).process_weights_after_loading(head)


def repack_experts(model: Any) -> None:
    """Pack the experts' weights again: on CPU the kernel reads a packed layout, and a reload leaves the plain one."""
    for experts in model.modules():
        if isinstance(experts, RoutedExperts) and isinstance(experts.quant_method, UnquantizedFusedMoEMethod):
            cast(Any, experts.quant_method).moe_kernel.fused_experts.process_weights_after_loading(experts)
