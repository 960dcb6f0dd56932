"""Rules about keys that must agree with each other. They look at nothing outside of the run file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator

from penstock.deploy.catalogue import catalogue
from penstock.deploy.checks.context import STAGES, Context, all_rules, rule
from penstock.deploy.findings import Finding
from penstock.services.metrics import describe
from penstock.services.weights.config import choose


@rule("reward", stages=("train", "evaluate"))
def a_reward_is_given(ctx: Context) -> Iterator[Finding]:
    if ctx.run_file.reward is None:
        remedy = "for example: reward: {rules: {exact: {}}}"
        yield ctx.error("reward", "is required and missing: nothing says which answers are good", remedy=remedy)


@rule("limits", "data")
def a_limit_ends_the_run(ctx: Context) -> Iterator[Finding]:
    if not ctx.run_file.limits.any and ctx.run_file.data.epochs is None:
        remedy = "set limits.steps, limits.minutes or limits.tokens"
        yield ctx.warning("limits", "nothing ends this run but you", remedy=remedy)


@rule("rollout", "engine", "data")
def a_prompt_and_its_answer_fit_the_engine(ctx: Context) -> Iterator[Finding]:
    answer, prompt = ctx.run_file.rollout.sampling.max_tokens, ctx.run_file.data.max_prompt_tokens
    yield from _both_fit(ctx, ("rollout.sampling.max_tokens", answer), ("data.max_prompt_tokens", prompt))


@rule("evaluation", "engine", stages=("train", "evaluate"))
def a_held_out_prompt_and_its_answer_fit_the_engine(ctx: Context) -> Iterator[Finding]:
    evaluation = ctx.run_file.evaluation
    if evaluation.data is None or evaluation.max_tokens is None:
        return
    prompt = ("evaluation.data.max_prompt_tokens", evaluation.data.max_prompt_tokens)
    yield from _both_fit(ctx, ("evaluation.max_tokens", evaluation.max_tokens), prompt)


def _both_fit(ctx: Context, of_answer: tuple[str, int], of_prompt: tuple[str, int | None]) -> Iterator[Finding]:
    """What is too long by itself is blamed; where only the two together are, the answer."""
    (answer_key, answer), (prompt_key, prompt) = of_answer, of_prompt
    limit = ctx.run_file.engine.max_model_len
    if prompt is not None and prompt >= limit:
        yield ctx.error(
            prompt_key,
            f"a prompt of {prompt} tokens leaves no room for an answer in engine.max_model_len {limit}",
            allowed=f"up to {limit - answer if answer < limit else limit - 1}",
            remedy="lower it, or raise engine.max_model_len",
        )
        prompt = None
    if answer + (prompt or 1) > limit:
        sides = f"a prompt of {prompt} and an answer of {answer}" if prompt else f"an answer of {answer}"
        yield ctx.error(
            answer_key,
            f"{sides} tokens {'do' if prompt else 'does'} not fit engine.max_model_len {limit}",
            allowed=f"up to {limit - (prompt or 1)}",
            remedy=f"lower it or {prompt_key}, or raise engine.max_model_len",
        )


@rule("deadlines", "store")
def whoever_waits_for_the_store_is_not_taken_for_dead(ctx: Context) -> Iterator[Finding]:
    silence, patience = ctx.run_file.deadlines.silence, ctx.run_file.store.deadline
    if silence <= patience:
        yield ctx.warning(
            "deadlines.silence",
            f"an actor that waits for the store may be still for store.deadline, {patience:g} s, and would be ended",
            allowed=f"more than {patience:g}",
            remedy="raise it, or lower store.deadline",
        )


@rule("learner")
def mini_batches_are_equally_large(ctx: Context) -> Iterator[Finding]:
    groups, parts = ctx.run_file.learner.groups_per_step, ctx.run_file.learner.mini_batches
    if groups % parts:
        fitting = [str(number) for number in range(1, groups + 1) if groups % number == 0]
        yield ctx.error(
            "learner.mini_batches",
            f"learner.groups_per_step {groups} is not divisible by it: some updates would be made of more groups",
            allowed=", ".join(fitting),
            remedy=f"or set learner.groups_per_step to {groups - groups % parts} or {groups + parts - groups % parts}",
        )


@rule("rollout", "learner")
def every_rank_has_answers(ctx: Context) -> Iterator[Finding]:
    learner = ctx.run_file.learner
    answers = learner.groups_per_step * ctx.run_file.rollout.group_size // learner.mini_batches
    if learner.ranks > answers:
        yield ctx.error(
            "learner.ranks",
            f"a mini-batch has {answers} answers, so {learner.ranks} ranks could not each have one",
            allowed=f"up to {answers}",
        )


@rule("learner", "engine")
def sampler_and_learner_count_alike(ctx: Context) -> Iterator[Finding]:
    if ctx.run_file.engine.dtype != ctx.run_file.learner.dtype:
        yield ctx.warning(
            "engine.dtype",
            f"the learner computes in {ctx.run_file.learner.dtype}: the two disagree on every token's log-probability",
            nearest=repr(ctx.run_file.learner.dtype),
        )


@rule("goals", "evaluation")
def goals_are_about_metrics_that_exist(ctx: Context) -> Iterator[Finding]:
    for number, goal in enumerate(ctx.run_file.goals):
        yield from known_metric(ctx, f"goals.{number}.metric", goal.metric)


@rule("checkpoints", "evaluation")
def the_best_is_by_a_metric_that_exists(ctx: Context) -> Iterator[Finding]:
    metric = ctx.run_file.checkpoints.keep_best
    if metric is not None:
        yield from known_metric(ctx, "checkpoints.keep_best", metric)


def known_metric(ctx: Context, key: str, metric: str) -> Iterator[Finding]:
    """One finding when no role records `metric`, or when it needs an evaluation that does not happen."""
    known = catalogue()
    if describe(metric, known) is None:
        close = difflib.get_close_matches(metric, known, n=1, cutoff=0.5)
        yield ctx.error(key, "no role records a metric of this name", nearest=close[0] if close else "")
    elif metric.startswith("eval/") and ctx.run_file.evaluation.data is None:
        yield ctx.error(key, "is measured by evaluation, and evaluation.data is not given")


@rule("limits", "checkpoints")
def a_checkpoint_comes_before_the_end(ctx: Context) -> Iterator[Finding]:
    steps, every = ctx.run_file.limits.steps, ctx.run_file.checkpoints.every
    if steps is not None and every > steps:
        problem = f"the run has {steps} steps: there is one checkpoint, at its end, and a crash before it loses all"
        yield ctx.warning("checkpoints.every", problem)


@rule("weights", "placement")
def the_transport_is_possible(ctx: Context) -> Iterator[Finding]:
    if ctx.joins_a_cluster:
        return  # how many machines hold actors is known once Ray has placed them
    chosen, why = choose(ctx.run_file.weights.transport, several=False, cuda=ctx.gpus > 0)
    if chosen is None:
        yield ctx.error("weights.transport", why)


@rule("placement", stages=("train", "sft"))
def a_cluster_of_its_own_has_only_what_this_machine_has(ctx: Context) -> Iterator[Finding]:
    if ctx.joins_a_cluster:
        return
    placement, remedy = ctx.run_file.placement, "join one with placement.ray_address, or leave it out"
    for role in ("rollout", "learner", "scorer"):
        if getattr(placement, role).resources:
            problem = "a cluster that is started for the run has no custom resources"
            yield ctx.error(f"placement.{role}.resources", problem, remedy=remedy)
    if placement.grows:
        yield ctx.error("placement.grows", "a cluster that is started for the run does not grow", remedy=remedy)


@rule("placement", stages=("train", "sft"))
def a_cluster_that_grows_does_not_show_its_gpus(ctx: Context) -> Iterator[Finding]:
    placement = ctx.run_file.placement
    if ctx.joins_a_cluster and placement.grows and placement.device == "auto":
        problem = "auto looks at the nodes that are there when the run starts, and GPU nodes may be still to come"
        yield ctx.warning("placement.device", problem, remedy="say cuda or cpu")


@rule("placement", "engine")
def two_share_one_gpu(ctx: Context) -> Iterator[Finding]:
    share = ctx.run_file.engine.memory_share
    if ctx.run_file.placement.colocate and ctx.gpus and share > 0.6:
        remedy = "0.3 to 0.5 is usual beside a learner"
        yield ctx.warning("engine.memory_share", "leaves little for the learner on the same GPU", remedy=remedy)


@rule("reward")
def the_environment_of_rules_is_set(ctx: Context) -> Iterator[Finding]:
    for name in ctx.run_file.reward.environment if ctx.run_file.reward else ():
        if name not in os.environ:
            yield ctx.warning("reward.environment", f"the variable {name} is not set here", remedy=f"export {name}=…")


@rule("reward", "store")
def rules_are_not_handed_the_store(ctx: Context) -> Iterator[Finding]:
    name = ctx.run_file.store.password_env
    if ctx.run_file.reward and name in ctx.run_file.reward.environment:
        problem = f"hands {name}, which store.password_env names, to reward functions, and with it the ledger"
        yield ctx.error("reward.environment", problem, remedy=f"leave {name} out")


@rule("evaluation", "data", stages=STAGES)
def held_out_prompts_are_held_out(ctx: Context) -> Iterator[Finding]:
    held_out = ctx.run_file.evaluation.data
    if held_out is None or ctx.stage == "evaluate":
        return
    training = {(s.path, s.subset, s.split): name for name, s in ctx.run_file.data.sources.items()}
    for name, source in held_out.sources.items():
        twin = training.get((source.path, source.subset, source.split))
        if twin is not None:
            key = f"evaluation.data.sources.{name}.path"
            yield ctx.warning(key, f"the same data as data.sources.{twin}: accuracy is measured on training prompts")


RULES = all_rules(globals())
