"""The seams between roles: small Protocols, the values that cross them, the errors they may raise.

Roles are written against these; `deploy` puts the real parts behind them, tests may put others. The largest of the
seams, the ledger's, has `services/replay.py` to itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from penstock.services.trajectory import Completion, Prompt, Sampling, Span, Trajectory, Unfinished
from penstock.services.versions import Version

if TYPE_CHECKING:
    import torch

    from penstock.services.weights.manifest import Manifest, ProbeRecord

# --- errors ---------------------------------------------------------------------------------------


class PenstockError(RuntimeError):
    """Base of the errors that end a run with one clear message."""


class WrongInput(PenstockError):
    """Something that a person gave cannot be used as it is; nothing was changed. Commands end with exit code 2."""


class StoreError(PenstockError):
    """The store did not answer, answered nonsense, or holds another run."""


class Fenced(PenstockError):
    """A call with a fencing token that is no longer the current one: the lease expired and the group was
    given to someone else. The caller forgets the group; nothing is lost."""


class DeadlinePassed(PenstockError):
    """A wait that took too long; the text says for what, since when, and who should have answered."""


class WeightsError(PenstockError):
    """Weights that are missing, do not match their checksums, or did not take effect in an engine."""


# --- generation -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One completion to be generated."""

    key: str
    """Unique within the generator."""
    prompt: Prompt
    sampling: Sampling
    resume: Unfinished | None = None
    """Tokens that another worker has already sampled; they count against `max_tokens`."""


@dataclass(frozen=True)
class SwapReport:
    """What a weight swap cost, in seconds, and how many requests were in flight."""

    version: Version
    verify: float
    pause: float
    probe: float
    in_flight: int
    gap: float | None = None
    """Largest difference between the engine's log-probs of the probe and the learner's, in nats; None where the
    learner has said none."""


class Generator(Protocol):
    """Many completions at a time; token ids in, token ids out."""

    @property
    def version(self) -> Version: ...

    def submit(self, request: Request) -> None: ...

    def spans(self, key: str) -> tuple[Span, ...]:
        """The versions that have sampled tokens of this request so far."""
        ...

    def step(self) -> list[tuple[str, Completion]]:
        """One engine step; the requests that ended in it."""
        ...

    @property
    def in_flight(self) -> tuple[str, ...]: ...

    @property
    def sampled(self) -> int:
        """Tokens sampled since the start; those that a request came with are not."""
        ...

    def take_back(self, keys: Sequence[str]) -> dict[str, Unfinished]:
        """Stop these requests and hand out what they have so far."""
        ...

    def cut(self, keys: Sequence[str]) -> list[tuple[str, Completion]]:
        """End these requests now with finish `stale`."""
        ...

    def prepared(self, version: Version) -> bool:
        """Whether `swap(version)` need not wait for what can be done beside the generation: fetch and verify. The first
        call begins with it; while an older version is under way that one comes first."""
        ...

    def swap(self, version: Version) -> SwapReport:
        """Change to the weights of `version`: verify, pause, load, resume, probe. Raises WeightsError, after
        which the generator must not be used any more."""
        ...

    def close(self) -> None: ...


# --- scoring --------------------------------------------------------------------------------------


class Scorer(Protocol):
    """Judges the completions of one prompt; never raises for a reward that failed."""

    def submit(self, prompt: Prompt, completions: Sequence[Completion]) -> Future[tuple[Trajectory, ...]]: ...

    def close(self) -> None: ...


# --- weights --------------------------------------------------------------------------------------


class WeightSender(Protocol):
    """The learner's end of a weight transport."""

    def publish(
        self, version: Version, tensors: Iterable[tuple[str, torch.Tensor]], probe: ProbeRecord | None = None
    ) -> None:
        """Make `version` readable; returns when every receiver could fetch it. With `probe`, what the learner's
        own forward pass says about a fixed sequence, engines prove after a swap that they compute the same."""
        ...

    def retire(self, keep: frozenset[Version]) -> list[Version]:
        """Delete all versions but these; returns what was deleted."""
        ...

    def close(self) -> None: ...


class WeightReceiver(Protocol):
    """A reader's end of a weight transport."""

    def manifest(self, version: Version) -> Manifest:
        """What is known of `version`, its probe included. Raises WeightsError."""
        ...

    def fetch(self, version: Version) -> AbstractContextManager[Mapping[str, torch.Tensor]]:
        """The tensors of `version`, checksums verified. Raises WeightsError."""
        ...
