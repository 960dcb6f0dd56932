"""Calls into a vLLM engine. Whatever one of them raises means that this engine is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from penstock.rollout.errors import EngineFailed
from penstock.services.contracts import PenstockError

if TYPE_CHECKING:
    from vllm import SamplingParams

    from penstock.rollout.vllm_setup import Started

T = TypeVar("T")


class Calls:
    """The engine, until it has failed: from then on every call raises EngineFailed with the first cause."""

    def __init__(self, name: str, start: Callable[[], Started], deadline: float) -> None:
        """Start the engine. `deadline`: seconds that a call to its workers may take."""
        self._name = name
        self._deadline = deadline
        self.failed: str | None = None
        """Why it must not be used any more."""
        self.started = self._guarded("start", start)
        self._engine = self.started.engine

    @property
    def vocabulary(self) -> int:
        return int(self._engine.model_config.get_vocab_size())

    def add(self, key: str, tokens: list[int], params: SamplingParams, salt: str, priority: int = 0) -> None:
        """`salt` keeps apart what may share a cached prefix."""
        from vllm.inputs.engine import tokens_input

        prompt = tokens_input(tokens, cache_salt=salt)
        self._guarded("add_request", lambda: self._engine.add_request(key, prompt, params, priority=priority))

    def step(self) -> list[Any]:
        outputs: list[Any] = self._guarded("step", self._engine.step)
        return outputs

    def abort(self, keys: Sequence[str]) -> None:
        """Does nothing where the engine has failed."""
        if keys and self.failed is None:
            self._guarded("abort", lambda: self._engine.abort_request(list(keys)))

    def recompute_all(self) -> None:
        """Empty the cache; running requests go back to the queue, their keys and values are computed again."""
        self._guarded("cache reset", lambda: self._engine.reset_prefix_cache(reset_running_requests=True))

    def rpc(self, method: str, arguments: dict[str, Any]) -> list[Any]:
        """Run a method in every process of the engine."""
        return self._guarded(
            method, lambda: self._engine.collective_rpc(method, timeout=self._deadline, kwargs=arguments)
        )

    def ask(self, what: str, question: Callable[[Any], T]) -> T:
        """Anything else of the engine."""
        return self._guarded(what, lambda: question(self._engine))

    def close(self) -> None:
        self.failed = self.failed or "it was closed"
        self._engine.engine_core.shutdown()

    def fail(self, what: str, why: str) -> EngineFailed:
        self.failed = f"{what}: {why}"
        return EngineFailed(f"{self._name}: the engine failed in {self.failed}")

    def check(self) -> None:
        """Raises EngineFailed where the engine has failed before."""
        if self.failed is not None:
            raise EngineFailed(f"{self._name} must not be used any more: {self.failed}")

    def _guarded(self, what: str, call: Callable[[], T]) -> T:
        self.check()
        try:
            return call()
        except PenstockError:
            raise
        except Exception as error:
            raise self.fail(what, f"{type(error).__name__}: {error}") from error
