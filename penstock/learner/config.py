"""Sections of a run file that belong to the learner. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from penstock.learner.algorithms.section import AlgorithmSection as AlgorithmSection  # noqa: PLC0414  one place for all
from penstock.services.settings import Section, WrongValue, on_resume
from penstock.services.staleness import Outlived


class ScheduleSection(Section):
    """How the learning rate moves over the optimizer's updates."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """`linear` and `cosine` fall from the learning rate to `min_ratio` of it over `decay_updates`."""
    warmup_updates: int = Field(0, ge=0)
    """Updates over which the rate rises linearly from nothing."""
    decay_updates: int | None = on_resume(None, ge=1)
    """Length of the fall, warm-up not included. Fine-tuning takes the rest of its updates when this is left out."""
    min_ratio: float = Field(0.0, ge=0, le=1)
    """Where the fall ends, as a fraction of the learning rate."""


class TrainingSection(Section):
    """What every stage that trains needs: layout of the model over the ranks, and the update rule."""

    ranks: int = on_resume(1, ge=1, le=4096)
    """Data-parallel processes. A run may be resumed with another number of them."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO: 0 copies everything to every rank, 1 shards optimizer states, 2 also gradients, 3 also
    parameters. Left out, it is 1, and 0 for one rank in float32, which has nothing to shard."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of forward and backward; the optimizer always keeps float32 weights."""
    gradient_checkpointing: bool = on_resume(False)
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = on_resume(False)
    """Compile the model's layers (torch.compile): small models train 1.3 to 1.5 times as fast on a CPU, after a start
    that takes up to a minute longer, the first time. Not at zero_stage 3, and not with rollout.keep_routing."""
    micro_batch_tokens: int = on_resume(8192, ge=16)
    """Most tokens, padding included, that go through the model at once on one rank. A longer answer goes alone."""
    collective_timeout: float = on_resume(1800.0, ge=10, le=86400)
    """Seconds after which a rank that waits for another gives up. Must exceed the longest single micro-batch, save
    or load; while rank 0 waits for data it keeps the others informed, so that waiting does not count."""
    learning_rate: float = on_resume(1e-6, gt=0, le=1)
    """Peak learning rate of AdamW."""
    schedule: ScheduleSection = ScheduleSection()
    """Learning rate over time."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's two moments; both in [0, 1)."""
    eps: float = Field(1e-8, gt=0, le=1e-3)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Decoupled decay of matrices; vectors (norms, biases) are never decayed."""
    max_grad_norm: float = on_resume(1.0, gt=0)
    """The global gradient is scaled down to this norm."""
    seed: int = Field(0, ge=0)
    """Order of the data within the stage; added to the run's seed."""

    @model_validator(mode="after")
    def _possible(self) -> TrainingSection:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise WrongValue("betas", f"betas lie in [0, 1); found {list(self.betas)}")
        if self.compile and self.zero_stage == 3:
            raise WrongValue(
                "compile",
                "at zero_stage 3 a layer's weights are gathered while it is called, which a compiled layer does not "
                "wait for; use zero_stage 2, or compile: false",
            )
        if self.dtype == "bfloat16" and self.zero_stage == 0:
            raise WrongValue(
                "zero_stage",
                "bfloat16 at zero_stage 0 would sum gradients over micro-batches in bfloat16; use zero_stage 1",
            )
        return self

    def stage(self, ranks: int) -> int:
        """The ZeRO stage of engines on so many ranks."""
        if self.zero_stage is not None:
            return self.zero_stage
        # ZeRO copies gradients and weights into flat buffers to shard them: for one rank that is all cost.
        return 0 if ranks == 1 and self.dtype == "float32" else 1


class LearnerSection(TrainingSection):
    """The learner: its batch, the model over the ranks, the update rule."""

    max_restarts: int = on_resume(3, ge=0)
    """How often in a row, without a new checkpoint in between, the ranks are started again from the newest checkpoint
    when one has died, fallen silent or lost contact. 0 ends the run at the first death."""
    groups_per_step: int = Field(32, ge=1)
    """Groups with signal in the batch of one train step."""
    mini_batches: int = Field(1, ge=1)
    """Optimizer updates per pass over the batch; each takes an equal share of the groups."""
    epochs: int = Field(1, ge=1, le=64)
    """Passes over the batch per train step."""
    max_nonfinite: int = on_resume(3, ge=1)
    """Train steps in a row that may be skipped for infinite or undefined gradients before the run ends."""

    @model_validator(mode="after")
    def _fits(self) -> LearnerSection:
        if self.mini_batches > self.groups_per_step:
            raise WrongValue(
                "mini_batches",
                f"mini_batches ({self.mini_batches}) cannot exceed groups_per_step ({self.groups_per_step}): "
                "a mini-batch is made of whole groups",
            )
        if self.schedule.kind != "constant" and self.schedule.decay_updates is None:
            raise WrongValue(
                "schedule",
                f"the schedule {self.schedule.kind} needs schedule.decay_updates, the number of updates over which the "
                "rate falls: train steps × mini_batches × epochs",
            )
        return self


HIGHEST_LAG = 1024
"""Of any bound."""


class AdaptiveLag(Section):
    """A bound on the lag that follows what staleness costs: one more while the learner waits for groups and the
    effective sample size allows it, one less where it does not."""

    min: int = on_resume(1, ge=0, le=HIGHEST_LAG)
    """Smallest bound."""
    max: int = on_resume(ge=0, le=HIGHEST_LAG)
    """Largest bound. What is kept for audits and counted for the store is for this one."""
    start: int | None = on_resume(None, ge=0, le=HIGHEST_LAG)
    """The bound at the start; by default `min`. A resumed run goes on with the one it had."""
    target_ess: float = on_resume(0.9, gt=0, lt=1)
    """Effective sample size (rollout_corr/ess) to be kept: below it the bound is tightened."""
    margin: float = on_resume(0.02, gt=0, lt=1)
    """The bound is opened only where the effective sample size lies this much above the target."""
    wait: float = on_resume(0.1, gt=0, lt=1)
    """And only where the learner waits for groups for more than this share of its time: otherwise older tokens would
    gain nothing."""
    every: int = on_resume(10, ge=2)
    """Train steps that are averaged for one judgement. After a change come first as many as the bound, in which groups
    from before are used up."""
    again: int = on_resume(200, ge=1)
    """Train steps until a bound that cost too much is tried again; doubled every time, up to sixteenfold."""
    hold: int | None = on_resume(200, ge=0)
    """Train steps for which a bound that somebody else has set (a person, a guard) is left alone; null for the rest of
    the run."""

    @model_validator(mode="after")
    def _a_range(self) -> AdaptiveLag:
        if self.min > self.max:
            raise WrongValue("min", f"min is {self.min}, more than max, which is {self.max}")
        if not self.min <= self.first <= self.max:
            raise WrongValue("start", f"start is {self.start}, outside of {self.min} to {self.max}")
        if self.target_ess + self.margin >= 1:
            raise WrongValue(
                "target_ess",
                f"target_ess {self.target_ess:g} and margin {self.margin:g} make {self.target_ess + self.margin:g}: no "
                "effective sample size is above 1, so the bound would never be opened",
            )
        return self

    @property
    def first(self) -> int:
        """The bound at the start."""
        return self.min if self.start is None else self.start


def _form(value: Any) -> str:
    """One number, or what it may follow; mistakes are then told of the form that was meant."""
    return "follows" if isinstance(value, (AdaptiveLag, Mapping)) else "fixed"


class StalenessSection(Section):
    """How old a token may be when it is trained on, and how long to wait for tokens that are young enough."""

    max_lag: Annotated[
        Annotated[int, Field(ge=0, le=HIGHEST_LAG), Tag("fixed")] | Annotated[AdaptiveLag, Tag("follows")],
        Discriminator(_form),
    ] = 2
    """Most train steps between the weights that sampled a token and the weights it is trained into. 0 is the
    synchronous system. A section in place of a number lets the bound follow what it costs: `{min: 1, max: 8}`; see
    docs/staleness.md."""
    outlived: Outlived = "drop"
    """An answer that outlives the bound while it is generated: `drop` its group, `mask` its tokens beyond the
    bound, or `cut` it short at the weight swap."""
    refill_attempts: int = on_resume(10, ge=1)
    """Groups without signal are replaced at most this many times groups_per_step in one train step; then the run ends.
    It also ends when the rollout workers drop so many in a row (unscored, or too long a prompt) and hand on none."""
    take_deadline: float = on_resume(1800.0, gt=0)
    """Seconds the learner waits for a batch before it gives up, and for a publication or an archive to be written. Must
    exceed the start of an engine and the longest answer."""

    @property
    def first_lag(self) -> int:
        """The bound that a run begins with."""
        return self.max_lag.first if isinstance(self.max_lag, AdaptiveLag) else self.max_lag

    @property
    def largest_lag(self) -> int:
        """The largest bound that the run file allows."""
        return self.max_lag.max if isinstance(self.max_lag, AdaptiveLag) else self.max_lag


class CheckpointSection(Section):
    """When the learner's state is written down, and what is kept of it."""

    every: int = on_resume(20, ge=1)
    """Train steps between checkpoints; there is always one at the end."""
    keep_last: int = on_resume(2, ge=1)
    """How many of the newest are kept."""
    keep_best: str | None = on_resume(None)
    """Name of a metric; the checkpoint with its best value is kept besides."""
    best: Literal["max", "min"] = on_resume("max")
    """Which value of `keep_best` is the best."""
    with_model: bool = on_resume(True)
    """Also write the weights in Hugging Face format into the checkpoint, for `penstock evaluate`."""


class ArchiveSection(Section):
    """Whole encoded batches kept on disk, with the learner's log-probs, and advantages but for those from values."""

    every: int = on_resume(0, ge=0)
    """Archive the batch of every N-th step; 0 archives none."""
    keep_last: int = on_resume(20, ge=1)
    """How many batches are kept."""
    weights: bool = on_resume(False)
    """Also keep the weights that the step started from and the groups it was fed, from which `penstock whatif` computes
    what another algorithm would have done: per archived step four bytes per parameter (two in bfloat16; twice as much
    with a value model of its own) and the groups again."""


class AuditSection(Section):
    """The parts of the log-ratio π/μ, recomputed exactly now and then: update, staleness, mismatch."""

    every: int = on_resume(0, ge=0)
    """Audit every N-th step; 0 audits none. Between a step and `staleness.max_lag` steps before it no published
    weights are deleted then."""
    sequences: int = on_resume(32, ge=1)
    """Answers of the batch that are looked at. Each costs one forward pass per version that sampled its tokens, and
    two more."""


class SftSection(TrainingSection):
    """Supervised fine-tuning: token cross-entropy on the response."""

    learning_rate: float = on_resume(1e-5, gt=0, le=1)
    """Peak learning rate of AdamW."""
    epochs: float = Field(1.0, gt=0, le=1000)
    """Passes over the data; may be a fraction."""
    batch_size: int = Field(64, ge=1)
    """Rows per optimizer update, over all ranks."""
