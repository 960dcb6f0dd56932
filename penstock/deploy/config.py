"""The sections of a run file that belong to no role: limits, goals, recording, placement, deadlines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from penstock.rollout.config import EvaluationSection
from penstock.services.data_config import DataSection
from penstock.services.settings import Section, WrongValue, form, on_resume


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

    metric: str = Field(pattern=form(r"^[^/]+(/[^/]+)+$", "the name of a metric, as reward/mean"))
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
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            above = f"at_least is {self.at_least:g}, more than at_most, which is {self.at_most:g}"
            raise WrongValue("at_least", f"{above}: no value could be both")
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
    sample_tokens: int = on_resume(512, ge=0)
    """Tokens of a sample that are recorded one by one with their log-probs, advantages and versions, for the token
    inspector; of a longer answer the first half of them and the last. A token takes about 80 bytes. 0 records texts
    alone."""
    mismatch_warning: float | None = on_resume(None, gt=0)
    """Warn when sampler and learner differ by more than this on tokens without lag, in nats per token: at the start and
    after every weight swap on a fixed sequence, at every step on what is trained. By default 1e-4 in float32 and 0.05
    in bfloat16, where rounding alone makes 0.01."""
    plots: bool = on_resume(True)
    """Draw plots/ when the run ends."""


_OWN_KEYS = {"CPU": "cpus", "GPU": "gpus"}
_NOT_ASKED_FOR = ("memory", "object_store_memory")
LEAST_SHARE = 1e-4
"""The finest share of a resource that Ray counts."""


def _custom(resources: dict[str, float]) -> dict[str, float]:
    """`resources` if Ray takes all of them for custom ones. Raises ValueError."""
    for name, amount in resources.items():
        if name in _OWN_KEYS:
            raise ValueError(f"{name} is no custom resource; say {_OWN_KEYS[name]}: {amount:g} beside `resources`")
        if name in _NOT_ASKED_FOR:
            raise ValueError(f"{name} is not asked for by actors of a run; name what nodes were started with")
        if not name or name != name.strip():
            raise ValueError(f"a resource has a name without spaces around it, found {name!r}")
        if amount < LEAST_SHARE:
            raise ValueError(f"{name}: {amount:g} is less than Ray can count; allowed: {LEAST_SHARE:g} or more")
    return resources


class RoleResources(Section):
    """What one actor of a role asks of Ray."""

    cpus: float = on_resume(1.0, ge=0)
    """CPU cores per actor, by Ray's logical count."""
    gpus: float | None = on_resume(None, ge=0)
    """GPUs per actor, fractions allowed; by default one where the machine has GPUs and none where it has not."""
    resources: Annotated[dict[str, float], AfterValidator(_custom)] = on_resume({})
    """Custom resources per actor, by the name under which the cluster's nodes offer them (`ray start --resources`,
    `resources` of a KubeRay group): so a role lands on the nodes that are meant for it. 0.001 only chooses a node,
    1 also counts how many actors it takes."""


class PlacementSection(Section):
    """Where the actors run."""

    ray_address: str | None = on_resume(None)
    """Address of a running Ray cluster that this machine is a node of, `auto` or HOST:6379; by default the one in
    RAY_ADDRESS, as in a job, or else one is started for the run and ended with it."""
    device: Literal["auto", "cpu", "cuda"] = on_resume("auto")
    """auto takes the GPUs when there are any."""
    colocate: bool = on_resume(False)
    """Learner and rollout workers share the same GPUs, each with its share of the memory."""
    rollout: RoleResources = RoleResources()
    """One rollout worker, tensor-parallel parts not counted."""
    learner: RoleResources = RoleResources()
    """One learner rank."""
    scorer: RoleResources = RoleResources(gpus=0.0)
    """One scorer."""
    grows: bool | None = on_resume(None)
    """Whether the cluster starts nodes for actors that find no room, so that a lack of resources is waited for and not
    refused. By default Ray is asked whether it has an autoscaler; a cluster that is started for the run has none."""
    learner_threads: int = on_resume(1, ge=1)
    """Threads of one learner rank's arithmetic. More than one slows small models down where ranks and engines share
    a machine's cores, because they then wait for each other; the engines have `engine.threads`."""


class DeadlinesSection(Section):
    """How long a run waits before a wait becomes an error, in seconds. Each error says for what, since when and who.
    Waits inside a role have their deadline in the role's own section; all are listed in docs/deadlines.md."""

    start: float = on_resume(900.0, gt=0)
    """An actor's start until it is ready: imports, loading the model, compiling; of fine-tuning, until its first
    update."""
    drain: float = on_resume(60.0, gt=0)
    """A clean end: workers hand back what they have."""
    silence: float = on_resume(600.0, gt=0)
    """An actor whose loop has not moved for so long, or that does not answer, is taken for dead: a worker is replaced,
    a learner begins again from its newest checkpoint, fine-tuning ends. Longer than any compilation, save or single
    micro-batch."""

    answer: float = on_resume(90.0, gt=0)
    """A word of what has nothing else to do: every node's look at what it shares, Ray's supervisor of a job."""
    blame: float = on_resume(5.0, ge=0)
    """After a learner rank failed or lost contact with another: that one's death, which Ray notices later, and which is
    then what is told."""

    @property
    def for_an_end(self) -> float:
        """Seconds in which a run that is asked to end has ended, cleanly or not: its step, and what is drained."""
        return self.silence + self.drain
