"""The sections of a run file that belong to generation: rollout workers, their engine, evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from penstock.services.settings import Section, WrongValue, on_resume


@dataclass(frozen=True)
class Keep:
    """What a generator records of its sampling, beside tokens and log-probs."""

    most_kept: int = 0
    """The tokens that top-p and top-k left to draw from, where they are at most so many; 0: they are not recorded."""
    routing: bool = False
    """The experts that a mixture-of-experts model chose."""


KEEP_NOTHING = Keep()
MOST_WORKERS = 4096
"""Of one run."""


_NOT_RECORDED = (
    "it leaves tokens out, and which were left is recorded (keep_mask) for top_p and top_k only; the learner could not "
    "renormalise over the same tokens, so its log-probabilities would not be those of what was drawn from; use top_p "
    "or top_k with keep_mask: true"
)
_NOT_REPEATED = (
    "it changes the logits before a token is drawn, and the learner, which computes log-probabilities from its own "
    "logits, does not repeat that: they would not be those of what was drawn from; leave it out"
)
_FILTERS = ("min_p", "typical_p", "top_a", "epsilon_cutoff", "eta_cutoff")
_PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty", "no_repeat_ngram_size")
_CHANGED = (*_PENALTIES, "logit_bias", "bad_words", "allowed_token_ids", "min_tokens")
_ENDS = "generation works on tokens; texts of one token each that end an answer are rollout.sampling.stop"
LEFT_OUT = {
    **dict.fromkeys(_FILTERS, _NOT_RECORDED),
    **dict.fromkeys(_CHANGED, _NOT_REPEATED),
    **dict.fromkeys(("stop_strings", "stop_sequences"), _ENDS),
    **dict.fromkeys(("n", "best_of"), "how many answers a prompt gets is rollout.group_size"),
    **dict.fromkeys(("max_new_tokens", "max_length"), "the budget of an answer is rollout.sampling.max_tokens"),
}
"""Sampling that people know from engines and that is refused, with the reason."""


class SamplingSection(Section):
    """How tokens are drawn while training.

    Only what the learner can reproduce from its own logits is here: penalties, min_p and stop strings change the
    distribution in ways that the recorded log-probabilities would not explain.
    """

    left_out = LEFT_OUT
    temperature: float = Field(1.0, gt=0, le=2)
    """Above 0: greedy tokens have no log-probability to learn from. At most 2, vLLM's own bound."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the most likely tokens up to this mass. Below 1 it needs `keep_mask`."""
    top_k: int = Field(0, ge=0)
    """Draw from so many of the most likely tokens; 0 for all. Above 0 it needs `keep_mask`."""
    keep_mask: bool = False
    """Record with every token which tokens top_p and top_k left to draw from, so that learner and reference take
    exactly these for the whole distribution. Without it they could not know which tokens were left out."""
    max_kept: int | None = Field(None, ge=1, le=65536)
    """Most tokens recorded with one token; where more were left, the set counts as unknown and the token stays out of
    the loss. By default top_k + 32 (tokens as likely as the last one come in too, and in bfloat16 many are), with
    top_p alone 1024. Without a GPU the engine hands out so many log-probs per token, which takes time."""
    max_tokens: int = on_resume(256, ge=1)
    """Budget of new tokens per answer."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer. Each must be one token of the tokenizer, because generation works on tokens."""

    @property
    def filtered(self) -> bool:
        """Whether tokens are drawn from less than the vocabulary."""
        return self.top_p < 1 or self.top_k > 0

    @property
    def most_kept(self) -> int:
        """Tokens recorded with one token at most; 0 where none are."""
        if not (self.keep_mask and self.filtered):
            return 0
        return self.max_kept or (self.top_k + 32 if self.top_k else 1024)


class AutoscaleSection(Section):
    """The number of rollout workers follows the learner: more while it waits for groups, fewer while groups wait for it
    and workers for the gate. Whoever scales by hand is heeded first; see docs/autoscaling.md."""

    min: int = on_resume(1, ge=1, le=MOST_WORKERS)
    """Fewest workers."""
    max: int = on_resume(ge=1, le=MOST_WORKERS)
    """Most workers."""
    up_wait: float = on_resume(0.2, gt=0, lt=1)
    """Share of its time that the learner may wait for groups; where it waits longer, there should be more workers, as
    many as bring it below."""
    up_after: float = on_resume(60.0, gt=0)
    """Seconds, and three train steps, for which it must have been so with the same workers."""
    down_idle: float = on_resume(0.15, gt=0, lt=1)
    """There should be one worker less where those left would still have nothing to do for this share of their time; and
    not one more where those there are have it."""
    down_queue: float = on_resume(0.75, gt=0)
    """And where groups lie stored for this share of the train steps that max_lag allows, on average: a worker with one
    long answer in its hands has something to do, and may be one too many all the same."""
    down_after: float = on_resume(300.0, gt=0)
    """Seconds, and three train steps, for which either must have been so with the same workers."""
    again: float = on_resume(1800.0, gt=0)
    """Seconds until a number is tried again that did not help, or that proved too small; doubled every time, up to
    sixteenfold."""
    hold: float | None = on_resume(1800.0, ge=0)
    """Seconds for which a number that somebody has asked for is left alone; null for the rest of the run."""

    @model_validator(mode="after")
    def _a_range(self) -> AutoscaleSection:
        if self.min > self.max:
            raise WrongValue("min", f"min is {self.min}, more than max, which is {self.max}")
        return self


class RolloutSection(Section):
    """The workers that generate."""

    workers: int = on_resume(1, ge=1, le=MOST_WORKERS)
    """How many at the start, each with an engine of its own; more can join and leave while the run goes on."""
    max_workers: int | None = on_resume(None, ge=1, le=MOST_WORKERS)
    """Most workers that the run may be scaled to. By default as many as the cluster has room for; a cluster that is
    started for the run and ends with it has room for twice `workers` and two more."""
    autoscale: AutoscaleSection | None = on_resume(None)
    """Let the number of workers follow the learner, within bounds: `{max: 8}`. By default it stays what it was asked
    to be."""
    group_size: int = Field(8, ge=1, le=1024)
    """Answers per prompt; baselines compare within a group, so 1 leaves nothing to compare with."""
    max_groups: int = on_resume(32, ge=1, le=65536)
    """Groups one worker may have in its hands at a time, being generated or scored."""
    lease_seconds: float = on_resume(60.0, ge=1, le=3600)
    """How long a group stays reserved without a sign of life from its worker. Renewed by a thread of its own every
    third of it, so it bounds how long the groups of a worker wait that cannot be reached, not how long an answer
    may take. A worker that is known to be dead parts with its groups at once."""
    max_restarts: int = on_resume(3, ge=0)
    """How often one worker is started again after it died. A worker that dies more often has a cause that starting
    again does not mend, and ends the run with it."""
    scoring_deadline: float = on_resume(900.0, gt=0)
    """Seconds that a worker waits for the scores of one group before it gives up. Must exceed what the reward rules
    may take together, and what waits before them at the scorer."""
    evaluation_slots: int = on_resume(8, ge=1, le=4096)
    """Evaluation answers that one engine generates at a time, beside training."""
    keep_routing: bool = False
    """Record which experts a mixture-of-experts model chose for every position, and have the learner use the same. Off,
    a small difference between two engines or versions sends a token to other experts, and its log-prob jumps."""
    sampling: SamplingSection = SamplingSection()
    """How tokens are drawn."""

    @model_validator(mode="after")
    def _within_the_most(self) -> RolloutSection:
        if self.max_workers is not None and self.workers > self.max_workers:
            raise WrongValue(
                "workers", f"workers is {self.workers}, more than max_workers, which is {self.max_workers}"
            )
        bounds = self.autoscale
        if bounds is not None and not bounds.min <= self.workers <= bounds.max:
            raise WrongValue(
                "workers",
                f"workers is {self.workers}, outside of autoscale, which goes from {bounds.min} to {bounds.max}",
            )
        if bounds is not None and self.max_workers is not None and bounds.max > self.max_workers:
            raise WrongValue(
                "autoscale", f"autoscale.max is {bounds.max}, more than max_workers, which is {self.max_workers}"
            )
        return self

    @property
    def most_at_home(self) -> int:
        """Workers that a cluster started for the run has room for."""
        if self.max_workers is not None:
            return self.max_workers
        return max(2 * self.workers + 2, self.autoscale.max if self.autoscale is not None else 0)

    @property
    def keep(self) -> Keep:
        """What workers record beside tokens and log-probs."""
        return Keep(most_kept=self.sampling.most_kept, routing=self.keep_routing)


class PacedSection(Section):
    """Generation without an engine, for drills: random answers at a set rate."""

    tokens_per_second: float = on_resume(1000.0, gt=0)
    """Tokens that one worker samples per second, all its answers together."""
    mean_length: float = on_resume(16.0, gt=1)
    """Mean tokens per answer, the end included; lengths are geometric, and cut at rollout.sampling.max_tokens."""
    start_seconds: float = on_resume(0.0, ge=0)
    """How long a worker takes to start, beside its process: as an engine that loads and compiles."""


class EngineSection(Section):
    """The engine inside of each worker."""

    kind: Literal["vllm", "paced"] = "vllm"
    """`vllm` generates with the model. `paced` is a drill: random answers at a set rate, with everything else as it is,
    to try a cluster, the page, alerts or autoscaling without a GPU; nothing is learned."""
    paced: PacedSection = PacedSection()
    """What `paced` does; of no effect on vllm."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of weights and KV cache. Keep it equal to the learner's, or the two disagree on every token."""
    tensor_parallel: int = Field(1, ge=1, le=64)
    """GPUs that share one engine."""
    memory_share: float = on_resume(0.85, gt=0, le=0.98)
    """Share of a GPU's memory that the engine may use; lower it when the learner is on the same GPU. At most 0.98,
    the driver needs the rest."""
    kv_cache_gib: float = on_resume(1.0, gt=0)
    """Size of the KV cache where there is no GPU, in GiB."""
    max_model_len: int = on_resume(2048, ge=2)
    """Longest prompt and answer together, in tokens."""
    max_num_seqs: int = on_resume(128, ge=1, le=4096)
    """Answers that are decoded at a time; others wait inside of the worker."""
    threads: int = on_resume(1, ge=1, le=1024)
    """CPU threads of one engine. Small models are fastest with 1."""
    kv: Literal["recompute", "keep"] = "recompute"
    """What becomes of the KV cache of running answers when weights change: computed again with the new weights, so
    that every token has one policy; or kept, which swaps faster and leaves tokens that match neither policy."""
    enforce_eager: bool = on_resume(False)
    """Do not compile the model: starts faster, generates slower."""
    seed: int = Field(0, ge=0)
    """Seed of the sampler; each worker adds its own number."""
    swap_deadline: float = on_resume(120.0, gt=0, le=3600)
    """Seconds that a weight swap may take before the engine counts as broken."""


_IN_ITSELF = {
    "sampling": "how answers are drawn to be measured stands in `evaluation` itself: temperature, samples, greedy, "
    "max_tokens"
}


class EvaluationSection(Section):
    """Measuring the policy on prompts that it is not trained on."""

    left_out = _IN_ITSELF
    every: int = on_resume(0, ge=0)
    """Evaluate after every so many steps; 0 only before the first step and after the last."""
    samples: int = on_resume(1, ge=1, le=1024)
    """Sampled answers per prompt, at `temperature`."""
    temperature: float = on_resume(1.0, gt=0, le=2)
    """Of the sampled answers; at most 2, vLLM's own bound."""
    greedy: bool = on_resume(True)
    """Also one greedy answer per prompt."""
    max_prompts: int | None = on_resume(256, ge=1)
    """Only so many prompts, the first of a fixed order; null for all."""
    max_tokens: int | None = on_resume(None, ge=1)
    """Budget of new tokens per answer; by default the one of training."""
    deadline: float = on_resume(3600.0, gt=0)
    """Seconds that one evaluation may take."""
