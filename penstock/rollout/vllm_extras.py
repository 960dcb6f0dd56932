"""What vLLM is asked for beside tokens and log-probs, and how its answers are read: one way per platform.

On NVIDIA the engine has switches for both. On CPU it refuses them: what top-p and top-k left is read from the log-probs
of the processed distribution, and the experts from a hook in the worker (`RoutingHook`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from penstock.rollout.keeping import KeptSet
from penstock.services.trajectory import Experts, Sampling

if TYPE_CHECKING:
    import torch

Told = tuple[str, int, Experts]
"""A request, the position its rows begin at, and the experts [n, layers, top_k]."""


class Masks(Protocol):
    """A way to learn which tokens were left to draw from."""

    def arguments(self) -> dict[str, Any]:
        """For the engine."""
        ...

    def params(self, sampling: Sampling, vocabulary: int, /) -> dict[str, Any]:
        """Changes to the SamplingParams of one request."""
        ...

    def aside(self) -> dict[str, Any]:
        """Changes to those of a probe, whose one sampled token nobody looks at."""
        ...

    def read(self, engine: Any, output: Any, /) -> list[KeptSet]:
        """Of the tokens in this output of a request."""
        ...


class MasksFromLogprobs:
    """Log-probs under the processed distribution are −inf where a token was left out."""

    def __init__(self, most: int) -> None:
        self._most = most

    def arguments(self) -> dict[str, Any]:
        return {"max_logprobs": self._most + 1}

    def params(self, sampling: Sampling, vocabulary: int) -> dict[str, Any]:
        # One more than is recorded: when that one is −inf, no token is missing.
        return {"logprobs": min(self._most + 1, vocabulary)} if sampling.filtered else {}

    def aside(self) -> dict[str, Any]:
        return {}

    def read(self, engine: Any, output: Any) -> list[KeptSet]:
        given = output.outputs[0].logprobs
        sets: list[KeptSet] = []
        for start, end in zip(given.start_indices, given.end_indices, strict=True):
            # The first of each token is what was drawn; it is among the others again.
            ids = np.asarray(given.token_ids[start + 1 : end], np.int32)
            left = np.sort(ids[np.isfinite(given.logprobs[start + 1 : end])])
            sets.append(None if len(left) > self._most else left)
        if not output.finished:
            # vLLM keeps all that it has ever told of a request: with hundreds of numbers per token, gigabytes.
            _request_state(engine, output.request_id).logprobs_processor.logprobs = type(given)()
        return sets


class MasksFromEngine:
    """vLLM's own `return_sampling_mask`, a GPU kernel. It wants a temperature and a top_k above 0 of every request."""

    def __init__(self, most: int) -> None:
        self._most = most

    def arguments(self) -> dict[str, Any]:
        return {"return_sampling_mask": True}

    def params(self, sampling: Sampling, vocabulary: int) -> dict[str, Any]:
        if sampling.temperature == 0:
            return {"temperature": 1.0, "top_k": 1}  # greedy in other words
        return {} if sampling.top_k else {"top_k": vocabulary}  # leaves all in

    def aside(self) -> dict[str, Any]:
        return {"top_k": 1}

    def read(self, _engine: Any, output: Any) -> list[KeptSet]:
        mask = output.outputs[0].sampling_mask
        if mask is None:
            return [None] * len(output.outputs[0].token_ids)
        given = mask.token_ids
        return [None if len(ids) > self._most else np.sort(np.asarray(ids, np.int32)) for ids in given]


class Routes(Protocol):
    """A way to learn which experts ran."""

    def arguments(self) -> dict[str, Any]:
        """For the engine."""
        ...

    def begin(self, engine: Any) -> None:
        """Once it has started."""
        ...

    def after_step(self, engine: Any, /) -> list[Told]:
        """What became known in a step."""
        ...

    def at_end(self, engine: Any, key: str, answer: Any | None, /) -> Experts | None:
        """What is only told when a request ends: from its first position on. `answer` is its last output; None when it
        is about to be aborted."""
        ...


class RoutesByHook:
    """Collected after every step from the hook in the worker.

    Prefix caching is off: a position whose keys come from the cache is never routed, and who computed it may be gone.
    The model is not compiled, a compiled one would not call the hook.
    """

    def arguments(self) -> dict[str, Any]:
        return {"enable_prefix_caching": False, "enforce_eager": True}

    def begin(self, engine: Any) -> None:
        engine.collective_rpc("watch_routing")

    def after_step(self, engine: Any) -> list[Told]:
        told = engine.collective_rpc("routed")[0]
        # vLLM appends a hyphen and eight letters to a request's id.
        return [(key.rpartition("-")[0], start, rows) for key, start, rows in told]

    def at_end(self, _engine: Any, _key: str, _answer: Any | None) -> Experts | None:
        return None


class RoutesFromEngine:
    """vLLM's own `enable_return_routed_experts`. It hands them out with the last output of a request, for all layers of
    the model; those of a request that is cut short lie ready in the output processor.

    Of a position that is computed again the engine decides which time counts; nothing of Penstock's sees both.
    """

    def __init__(self) -> None:
        self._layers: list[int] = []

    def arguments(self) -> dict[str, Any]:
        return {"enable_return_routed_experts": True}

    def begin(self, engine: Any) -> None:
        self._layers = engine.collective_rpc("expert_layers")[0]

    def after_step(self, _engine: Any) -> list[Told]:
        return []

    def at_end(self, engine: Any, key: str, answer: Any | None) -> Experts | None:
        if answer is not None:
            rows = answer.routed_experts
        else:
            chunks = _request_state(engine, key).routed_experts_chunks
            rows = np.concatenate(chunks) if chunks else None
        return None if rows is None else rows[:, self._layers].astype(np.int16)


def _request_state(engine: Any, key: str) -> Any:
    """What vLLM's output processor holds of a request."""
    processor = engine.output_processor
    return processor.request_states[processor.external_req_ids[key][0]]


class RoutingHook:
    """In the worker, on CPU: every router's choice, step by step, and which rows of it belong to which request."""

    def __init__(self, runner: Any) -> None:
        from vllm.model_executor.layers.fused_moe.layer import MoERunner

        self._runner = runner
        self._chosen: list[torch.Tensor] = []
        self._told: list[Told] = []
        self._layers = 0
        for module in runner.get_model().modules():
            if isinstance(module, MoERunner):
                module.router.set_capture_fn(self._chosen.append)
                self._layers += 1
        if self._layers == 0:
            raise ValueError("routing is to be kept, and this model has no layer with experts")
        self._execute = runner.execute_model
        runner.execute_model = self._watched

    def take(self) -> list[Told]:
        told, self._told = self._told, []
        return told

    def _watched(self, scheduled: Any, *more: Any, **named: Any) -> Any:
        """One forward pass; layers are called in the order in which they stand in the model."""
        import torch

        self._chosen.clear()
        result = self._execute(scheduled, *more, **named)
        total = scheduled.total_num_scheduled_tokens
        if total == 0:
            return result
        if len(self._chosen) != self._layers:
            raise RuntimeError(f"{len(self._chosen)} routers have chosen in one pass, the model has {self._layers}")
        rows = torch.stack([chosen[:total] for chosen in self._chosen], 1).to(torch.int16).numpy()
        batch, at = self._runner.input_batch, 0
        for place, request in enumerate(batch.req_ids):
            count = scheduled.num_scheduled_tokens[request]
            self._told.append((request, int(batch.num_computed_tokens_cpu[place]), rows[at : at + count]))
            at += count
        return result


def expert_layers(model: Any) -> list[int]:
    """Which layers of a vLLM model have experts, counted from 0."""
    from vllm.model_executor.layers.fused_moe.layer import MoERunner

    return sorted(int(module.layer_id) for module in model.modules() if isinstance(module, MoERunner))
