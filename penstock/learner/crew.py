"""What the ranks do together: rank 0 says which of seven things, and all do it.

A leader that has nothing to say announces `Idle` from time to time, so that no collective of the followers
times out while it waits for data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch

from penstock.learner import exhibit
from penstock.learner.algorithms.bound import BoundAlgorithm
from penstock.learner.batch import Array
from penstock.learner.config import LearnerSection
from penstock.learner.deal import Share
from penstock.learner.diagnostics import step_metrics
from penstock.learner.dials import LEARNING_RATE
from penstock.learner.engine import Engine
from penstock.learner.engines import Engines
from penstock.learner.ranks import Team
from penstock.learner.step import train_step
from penstock.learner.universal import restore
from penstock.services.logprobs import sequence_logprobs
from penstock.services.weights.manifest import ProbeRecord, probe_tokens


class Idle(msgspec.Struct, tag=True):
    """Nothing to do yet; keep waiting."""


class Train(msgspec.Struct, tag=True):
    """One train step on the shares that follow."""

    keep_logprobs: bool
    coefficients: dict[str, float]
    """Where those are now that adapt or were turned, by their names in `dials`."""
    policy_frozen: bool
    """Only the values are learned."""
    shown: bool = False
    """Some rank's share has rows that people will look at."""


class Gather(msgspec.Struct, tag=True):
    """Help rank 0 to a copy of the whole weights."""

    values: bool = False
    """Of the value model instead of the policy."""


class Probe(msgspec.Struct, tag=True):
    """A forward pass over the probe, in which every rank must take part where parameters are sharded."""


class Save(msgspec.Struct, tag=True):
    """Write the engine's state."""

    folder: str


class Load(msgspec.Struct, tag=True):
    """Go back to the state that a checkpoint holds."""

    folder: str


class End(msgspec.Struct, tag=True):
    """The run is over."""


Order = Idle | Train | Gather | Probe | Save | Load | End
_DECODER = msgspec.msgpack.Decoder(Order)
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True)
class Trained:
    """What a train step did, over all ranks."""

    applied: int
    skipped: int
    metrics: dict[str, float]
    logp_start: list[Array]
    """Per rank: log-probs of its share's tokens at the start of the step; empty unless asked for."""
    shown: list[bytes] = field(default_factory=list)
    """Per rank: columns of its share's `shown` rows, for `exhibit.split`; empty without any."""


class Crew:
    """One rank of the learner at work. `beat` is told what it is doing, so often that silence means a hang:
    at every micro-batch, at every tensor gathered, before and after a checkpoint is written."""

    def __init__(
        self,
        team: Team,
        engines: Engines,
        algorithm: BoundAlgorithm,
        section: LearnerSection,
        beat: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.team = team
        self.engines = engines
        self._algorithm = algorithm
        self._section = section
        self._beat = beat
        self._said = time.monotonic()

    @property
    def engine(self) -> Engine:
        """The policy's."""
        return self.engines.policy

    def follow(self) -> None:
        """A follower's life: do what rank 0 announces, until it announces the end."""
        while True:
            self._beat("waiting for rank 0")
            order = _DECODER.decode(self.team.announce(b""))
            if isinstance(order, End):
                return
            if isinstance(order, Train):
                self._train(self.team.scatter([]), order)
            elif isinstance(order, Gather):
                self._snapshot(order.values, wanted=False)
            elif isinstance(order, Probe):
                self._probe()
            elif isinstance(order, Save):
                self._save(Path(order.folder))
            elif isinstance(order, Load):
                self._load(Path(order.folder))

    # --- what rank 0 asks for -----------------------------------------------------------------------

    def train(
        self,
        shares: Sequence[Share],
        keep_logprobs: bool = False,
        coefficients: Mapping[str, float] | None = None,
        policy_frozen: bool = False,
    ) -> Trained:
        """One train step; `shares` in the order of ranks, `coefficients` where those are now that have moved."""
        order = Train(keep_logprobs, dict(coefficients or {}), policy_frozen, any(share.shown for share in shares))
        self._announce(order)
        payloads = [share.to_bytes() for share in shares] if self.team.size > 1 else [b""]
        self.team.scatter(payloads)
        return self._train(shares[0], order)

    def snapshot(self) -> dict[str, torch.Tensor]:
        """A copy of the whole weights on the CPU, by Hugging Face names."""
        return self._gathered(Gather())

    def snapshot_values(self) -> dict[str, torch.Tensor]:
        """The same of the value model, or of the value head alone."""
        return self._gathered(Gather(values=True))

    def probe(self) -> ProbeRecord:
        """What this learner's own forward pass says of the fixed sequence; engines must agree after their swap."""
        self._announce(Probe())
        return self._probe()

    def save(self, folder: Path) -> None:
        """Write the engine's state into `folder`; returns when every rank has written its part."""
        self._announce(Save(str(folder)))
        self._save(folder)

    def load(self, folder: Path) -> None:
        """Go back to the checkpoint in `folder`; returns when every rank has."""
        self._announce(Load(str(folder)))
        self._load(folder)

    def idle(self) -> None:
        """Keep the followers' collectives from timing out; cheap enough to be called all the time."""
        if time.monotonic() - self._said > min(5.0, self._section.collective_timeout / 10):
            self._announce(Idle())

    def end(self) -> None:
        """Let the followers go."""
        self._announce(End())

    # --- what all do --------------------------------------------------------------------------------

    def _announce(self, order: Order) -> None:
        self.team.announce(_encode(order))
        self._said = time.monotonic()

    def _train(self, given: Share | bytes, order: Train) -> Trained:
        alive = partial(self._beat, "training")
        alive()
        share = Share.from_bytes(given) if isinstance(given, bytes) else given
        section, peak = self._section, order.coefficients.get(LEARNING_RATE)
        if peak is not None:
            section = section.model_copy(update={LEARNING_RATE: peak})
        result = train_step(
            self.engines,
            share,
            self._algorithm.at(order.coefficients),
            section,
            self.team,
            order.keep_logprobs,
            order.policy_frozen,
            alive,
        )
        alive()
        totals = result.tally.over(self.team)
        kept = self.team.gather(result.logp_start.tobytes()) if order.keep_logprobs else []
        shown = self.team.gather(exhibit.to_bytes(result.shown)) if order.shown else []
        return Trained(
            applied=result.applied,
            skipped=result.skipped,
            metrics=step_metrics(totals, share.updates, len(share.epochs)) | result.metrics,
            logp_start=[np.frombuffer(part, np.float32) for part in kept],
            shown=shown,
        )

    def _gathered(self, order: Gather) -> dict[str, torch.Tensor]:
        self._announce(order)
        return self._snapshot(order.values, wanted=True)

    def _snapshot(self, values: bool, wanted: bool) -> dict[str, torch.Tensor]:
        alive = partial(self._beat, "gathering weights")
        return self.engines.snapshot_values(wanted, alive) if values else self.engine.snapshot(wanted, alive)

    def _probe(self) -> ProbeRecord:
        self._beat("computing the probe")
        tokens = probe_tokens(self.engine.vocabulary)
        row = (np.asarray(tokens[:1], np.int32), np.asarray(tokens[1:], np.int32))
        (logprobs,) = sequence_logprobs(self.engine, [row], device=self.engine.device)
        return ProbeRecord(tokens, tuple(logprobs.tolist()))

    def _save(self, folder: Path) -> None:
        self._beat("writing a checkpoint")
        self.engines.save(folder)
        self._beat("waiting for all ranks to write a checkpoint")
        self.team.barrier()
        self._beat("wrote a checkpoint")

    def _load(self, folder: Path) -> None:
        self._beat("loading a checkpoint")
        restore(self.engines, self.team, folder, self._beat)
        self._beat("waiting for all ranks to load a checkpoint")
        self.team.barrier()
        self._beat("loaded a checkpoint")
