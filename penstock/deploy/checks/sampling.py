"""Rules about what sampling leaves out and chooses, and what of it is recorded, so that the learner can do the same."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.deploy.checks.context import Context, all_rules, rule
from penstock.deploy.findings import Finding
from penstock.services.contracts import PenstockError


@rule("rollout")
def the_learner_can_reproduce_the_sampling(ctx: Context) -> Iterator[Finding]:
    sampling = ctx.run_file.rollout.sampling
    why = (
        "the learner cannot reproduce which tokens were filtered out, so its log-probabilities would not be those of "
        "the distribution that was sampled from"
    )
    remedy = "set rollout.sampling.keep_mask: true, so that the tokens that were left are recorded and used again"
    if sampling.keep_mask:
        yield from _masks_can_be_kept(ctx)
        return
    if sampling.top_p < 1:
        yield ctx.error("rollout.sampling.top_p", why, allowed="1.0 (no filter)", remedy=remedy)
    if sampling.top_k > 0:
        yield ctx.error("rollout.sampling.top_k", why, allowed="0 (no filter)", remedy=remedy)


def _masks_can_be_kept(ctx: Context) -> Iterator[Finding]:
    sampling = ctx.run_file.rollout.sampling
    if not sampling.filtered:
        remedy = "leave it out, or set top_p or top_k"
        yield ctx.warning("rollout.sampling.keep_mask", "nothing is filtered: every token is kept", remedy=remedy)
    elif sampling.top_k and sampling.most_kept < sampling.top_k:
        yield ctx.error(
            "rollout.sampling.max_kept",
            f"top_k leaves {sampling.top_k} tokens to draw from: no set could be recorded, and no token be trained on",
            allowed=f"{sampling.top_k} or more",
        )


@rule("engine", "rollout", stages=("train", "evaluate"))
def a_drill_measures_and_teaches_nothing(ctx: Context) -> Iterator[Finding]:
    if ctx.run_file.engine.kind != "paced":
        return
    if ctx.stage == "evaluate":
        yield ctx.error("engine.kind", "an evaluation measures a model, and paced answers come of none", allowed="vllm")
        return
    yield ctx.warning("engine.kind", "answers are random and nothing is learned: this is a drill", remedy="set vllm")
    rollout = ctx.run_file.rollout
    meaningless = {
        "sampling.top_p": (rollout.sampling.top_p < 1, "1.0"),
        "sampling.top_k": (rollout.sampling.top_k > 0, "0"),
        "keep_routing": (rollout.keep_routing, "false"),
    }
    for key, (asked, allowed) in meaningless.items():
        if asked:
            yield ctx.error(f"rollout.{key}", "means nothing to paced answers", allowed=allowed)


@rule("rollout", "model")
def routing_can_be_kept(ctx: Context) -> Iterator[Finding]:
    if isinstance(ctx.model, PenstockError):
        return  # said by the rule that opens the model
    keeps, experts = ctx.run_file.rollout.keep_routing, ctx.model.experts
    if keeps and not experts:
        what = f"{ctx.run_file.model.path!r} is no mixture of experts: there is no routing to keep"
        yield ctx.error("rollout.keep_routing", what, allowed="false")
    if not keeps and experts:
        yield ctx.warning(
            "rollout.keep_routing",
            f"the model chooses among {experts} experts for every token; where learner and sampler choose differently, "
            "the log-probability of a token jumps",
            remedy="set it to true: the sampler's choice is recorded, and the learner repeats it",
        )


@rule("rollout", "learner")
def compiled_layers_take_no_hooks(ctx: Context) -> Iterator[Finding]:
    if ctx.run_file.learner.compile and ctx.run_file.rollout.keep_routing:
        why = "the sampler's choice of experts is repeated by hooks, which layers that are compiled do not call"
        yield ctx.error("learner.compile", why, allowed="false", remedy="or set rollout.keep_routing to false")


RULES = all_rules(globals())
