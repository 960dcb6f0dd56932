"""The sections of a run file that belong to no role: limits, goals, recording, placement, deadlines."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from penstock.rollout.config import EvaluationSection
from penstock.services.data_config import DataSection
from penstock.services.settings import Section, on_resume


class LimitsSection(Section):
    """When a run ends. The first limit that is reached ends it cleanly: drain, checkpoint, summary."""

    steps: int | None = on_resume(None, ge=1)
    """Train steps in all, those before a resume included."""
    minutes: float | None = on_resume(None, gt=0)
    """Minutes of training by the clock, from the first published weights; starting does not count, and a resumed run
    begins to count again."""
    tokens: int | None = on_resume(None, ge=1)
    """Tokens trained on in all."""
    disk_gib: float | None = on_resume(None, gt=0)
    """Size of the run directory in GiB."""

    @property
    def any(self) -> bool:
        """True when at least one limit is set."""
        return any(v is not None for v in (self.steps, self.minutes, self.tokens, self.disk_gib))


class GoalSection(Section):
    """What a run must have reached when it ends; otherwise it exits with code 3."""

    metric: str = Field(pattern=r"^[^/]+(/[^/]+)+$")
    """Name of a metric of metrics.jsonl, for example `eval/sampled/accuracy`."""
    at_least: float | None = on_resume(None)
    """Smallest value that is good enough."""
    at_most: float | None = on_resume(None)
    """Largest value that is good enough."""
    of: Literal["final", "initial", "gain"] = on_resume("final")
    """final: the last value recorded; initial: the first; gain: the last minus the first."""

    @model_validator(mode="after")
    def _bounded(self) -> GoalSection:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a goal needs a bound: set at_least, at_most, or both")
        return self


class HeldOutSection(EvaluationSection):
    """Evaluation, and the prompts it is done on."""

    data: DataSection | None = None
    """Held-out prompts; without them nothing is evaluated."""

    def located(self, base: Path) -> HeldOutSection:
        """The same section with its paths absolute."""
        return self.model_copy(update={"data": self.data.located(base) if self.data else None})


class RecordingSection(Section):
    """What a run writes down beside its metrics."""

    samples: int = on_resume(4, ge=0)
    """Trajectories per recorded step in samples/, as readable text; 0 writes none."""
    samples_every: int = on_resume(1, ge=1)
    """Record samples of every so many steps."""
    mismatch_warning: float | None = on_resume(None, gt=0)
    """Warn when sampler and learner differ by more than this on tokens without lag, in nats per token. By default 1e-4
    in float32 and 0.05 in bfloat16, where rounding alone makes 0.01."""
    plots: bool = on_resume(True)
    """Draw plots/ when the run ends."""


class RoleResources(Section):
    """What one actor of a role asks of Ray."""

    cpus: float = on_resume(1.0, ge=0)
    """CPU cores per actor, by Ray's logical count."""
    gpus: float | None = on_resume(None, ge=0)
    """GPUs per actor, fractions allowed; by default one where the machine has GPUs and none where it has not."""


class PlacementSection(Section):
    """Where the actors run."""

    ray_address: str | None = on_resume(None)
    """Address of a running Ray cluster, for example `auto` or `ray://head:10001`; by default one is started for the
    run and ended with it."""
    device: Literal["auto", "cpu", "cuda"] = on_resume("auto")
    """auto takes the GPUs when there are any."""
    colocate: bool = on_resume(False)
    """Learner and rollout workers share the same GPUs, each with its share of the memory."""
    rollout: RoleResources = RoleResources()
    """One rollout worker, tensor-parallel parts not counted."""
    learner: RoleResources = RoleResources()
    """One learner rank."""
    scorer: RoleResources = RoleResources(gpus=0.0)
    """The scorer of a rollout worker."""
    learner_threads: int = on_resume(1, ge=1)
    """Threads of one learner rank's arithmetic. More than one slows small models down where ranks and engines share
    a machine's cores, because they then wait for each other; the engines have `engine.threads`."""


class DeadlinesSection(Section):
    """How long the driver waits before a wait becomes an error, in seconds. Each error says for what, since when and
    who. Waits inside a role have their deadline in the role's own section."""

    start: float = on_resume(900.0, gt=0)
    """An actor's start until it is ready: imports, loading the model, compiling."""
    drain: float = on_resume(60.0, gt=0)
    """A clean end: workers hand back what they have."""
    silence: float = on_resume(600.0, gt=0)
    """An actor whose loop has not moved for so long, or that does not answer, is taken for dead: a worker is replaced,
    a learner ends the run. Longer than any compilation, save or single micro-batch."""

    @property
    def for_an_end(self) -> float:
        """Seconds in which a run that is asked to end has ended, cleanly or not: its step, and what is drained."""
        return self.silence + self.drain
