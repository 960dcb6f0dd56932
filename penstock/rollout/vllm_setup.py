"""How a vLLM engine is started, and what Penstock adds to its worker: loading weights into a model in use."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.rollout.config import EngineSection, Keep
from penstock.rollout.vllm_extras import (
    Masks,
    MasksFromEngine,
    MasksFromLogprobs,
    Routes,
    RoutesByHook,
    RoutesFromEngine,
    RoutingHook,
    Told,
    expert_layers,
)

if TYPE_CHECKING:
    import torch

EXTENSION = "penstock.rollout.vllm_setup.WorkerExtension"


@dataclass(frozen=True)
class Started:
    """An engine, and how it is asked for what is kept of its sampling."""

    engine: Any
    masks: Masks | None
    """None where no sets are kept."""
    routes: Routes | None
    """None where no routing is kept."""


def start_engine(
    source: dict[str, Any], section: EngineSection, seed: int, keep: Keep, transfer: str | None
) -> Started:
    """An LLMEngine of this process; `source` names the model. Sets variables that vLLM reads when it is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # engines of one node would share core 0
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    # At every reload it warns of layers without weights and of the output layer, which is repacked below.
    # A filter, because vLLM sets the levels of its loggers anew.
    noisy = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
    noisy.addFilter(lambda record: "Failed to load weights" not in str(record.msg))
    on_cpu = current_platform.is_cpu()
    if on_cpu:
        torch.set_num_threads(section.threads)
    masks, routes = extras(keep, on_cpu)
    arguments = {
        **source,
        "dtype": section.dtype,
        "max_model_len": section.max_model_len,
        "max_num_seqs": section.max_num_seqs + 1,  # one slot is the probe's
        "tensor_parallel_size": section.tensor_parallel,
        "distributed_executor_backend": "uni" if section.tensor_parallel == 1 else "mp",
        "enforce_eager": section.enforce_eager,
        "seed": seed,
        "worker_extension_cls": EXTENSION,
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",  # the probe goes before all others
        "async_scheduling": False,  # nothing is in flight between two steps
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # the model's own defaults for sampling do not apply
        "disable_log_stats": True,
        "weight_transfer_config": {"backend": transfer} if transfer else None,
    }
    if on_cpu:
        arguments |= {"kv_cache_memory_bytes": int(section.kv_cache_gib * 2**30), "block_size": 32}
    else:
        arguments |= {"gpu_memory_utilization": section.memory_share}
    for extra in (masks, routes):
        arguments |= extra.arguments() if extra is not None else {}
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
    if routes is not None:
        routes.begin(engine)
    return Started(engine, masks, routes)


def extras(keep: Keep, on_cpu: bool) -> tuple[Masks | None, Routes | None]:
    """How this platform's engine is asked for what is kept."""
    masks: Masks | None = None
    if keep.most_kept:
        masks = MasksFromLogprobs(keep.most_kept) if on_cpu else MasksFromEngine(keep.most_kept)
    routes: Routes | None = None
    if keep.routing:
        routes = RoutesByHook() if on_cpu else RoutesFromEngine()
    return masks, routes


class WorkerExtension:
    """Methods that vLLM adds to its worker class; call them with `collective_rpc`."""

    model_runner: Any

    def load_in_place(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        """Replace the model's weights by these, in checkpoint format."""
        from penstock.rollout.vllm_reload import Loader

        if not hasattr(self, "_loader"):
            self._loader = Loader(self.model_runner)
        self._loader.load(tensors)

    def watch_routing(self) -> None:
        """From now on `routed` has what the routers choose."""
        self._routing = RoutingHook(self.model_runner)

    def routed(self) -> list[Told]:
        """What they have chosen since it was last asked."""
        return self._routing.take()

    def expert_layers(self) -> list[int]:
        """Which layers have experts."""
        return expert_layers(self.model_runner.get_model())
