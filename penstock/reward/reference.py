"""Log-probabilities of sampled tokens under a frozen model, batched across groups."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.services.contracts import DeadlinePassed
from penstock.services.trajectory import Completion, Floats, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from penstock.reward.config import ReferenceSection
    from penstock.services.model_config import ModelSection


@dataclass(frozen=True)
class _Job:
    prompt: Prompt
    completions: tuple[Completion, ...]
    result: Future[list[Floats]]

    @property
    def tokens(self) -> int:
        return sum(len(self.prompt.tokens) + len(c.tokens) for c in self.completions)


class ReferenceScorer:
    """A frozen model on one thread of its own; groups that wait are taken together.

    `temperature` is the sampler's, and so is what top-p and top-k left of each token's distribution: all policies are
    compared under the same ones. At most `batch_tokens` tokens, padding included, go through the model at a time.
    """

    def __init__(self, model: PreTrainedModel, batch_tokens: int, temperature: float, device: str = "cpu") -> None:
        from penstock.services.logprob_model import LogprobModel

        self._model = LogprobModel(model.to(device).eval().requires_grad_(False))
        self._batch_tokens = batch_tokens
        self._temperature = temperature
        self._device = device
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._tokens = 0
        self._busy = 0.0
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="reference", daemon=True)
        self._thread.start()

    def submit(self, prompt: Prompt, completions: Sequence[Completion]) -> Future[list[Floats]]:
        """One float32 [T] per completion, in nats, in order: of every token, also of those that are no actions."""
        job = _Job(prompt, tuple(completions), Future())
        with self._lock:
            if self._closed:
                raise RuntimeError("the reference model was closed")
            self._jobs.put(job)
        return job.result

    @property
    def tokens_per_second(self) -> float:
        """While it was at work; 0 before the first batch."""
        return self._tokens / self._busy if self._busy else 0.0

    def close(self) -> None:
        """Finish the batch in hand; groups not begun are cancelled. May be repeated."""
        with self._lock:
            self._closed = True
            self._jobs.put(None)
        self._thread.join(300)
        if self._thread.is_alive():
            raise DeadlinePassed("waited 300 s for the reference model to finish one batch; its thread still runs")

    def _serve(self) -> None:
        while jobs := self._waiting():
            try:
                found = self._compute(jobs)
            except Exception as error:  # noqa: BLE001  belongs to whoever waits for the futures
                for job in jobs:
                    job.result.set_exception(error)
                continue
            for job in jobs:
                job.result.set_result(found[: len(job.completions)])
                del found[: len(job.completions)]

    def _waiting(self) -> list[_Job]:
        """The next job, and those that wait behind it, up to a batch. Nothing once the scorer is closed."""
        jobs: list[_Job] = []
        with contextlib.suppress(queue.Empty):
            while sum(job.tokens for job in jobs) < self._batch_tokens:
                job = self._jobs.get(block=not jobs)
                if job is not None:
                    jobs.append(job)
                if self._closed:
                    self._cancel(jobs)
                    return []
        return jobs

    def _cancel(self, jobs: list[_Job]) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    jobs.append(job)
        for job in jobs:
            job.result.cancel()

    def _compute(self, jobs: list[_Job]) -> list[Floats]:
        from penstock.services.logprobs import sequence_logprobs

        started = time.monotonic()
        answers = [(job.prompt, completion) for job in jobs for completion in job.completions]
        rows = [(prompt.tokens, completion.tokens) for prompt, completion in answers]
        kept = [completion.kept for _, completion in answers]
        found = sequence_logprobs(self._model, rows, self._temperature, self._batch_tokens, self._device, kept)
        self._busy += time.monotonic() - started
        self._tokens += sum(job.tokens for job in jobs)
        return found


def load_reference(
    section: ReferenceSection, start: ModelSection, temperature: float, device: str = "cpu"
) -> ReferenceScorer:
    """The reference of a section; its model defaults to `start`, the model the run starts from. Raises ModelError."""
    from penstock.services.models import load_model

    chosen = section.model or start
    model = load_model(chosen, section.dtype or chosen.dtype)
    return ReferenceScorer(model, section.batch_tokens, temperature, device)
