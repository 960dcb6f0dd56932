"""Rules about data and rewards: files, columns and rows can be used, and rules find what they need. Runs no rule."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.deploy.checks.context import STAGES, Context, all_rules, rule
from penstock.deploy.findings import Finding
from penstock.reward import check as reward_check
from penstock.services import data_read, models
from penstock.services.chat import ChatError, Renderer
from penstock.services.contracts import PenstockError
from penstock.services.data import PairSource, PromptSource
from penstock.services.data_config import DataSection


@rule("data", stages=("train", "sft"))
def the_data_is_there(ctx: Context) -> Iterator[Finding]:
    yield from ctx.within("data", data_read.problems(ctx.run_file.data, responses=ctx.stage == "sft"))


@rule("evaluation", stages=STAGES)
def the_held_out_data_is_there(ctx: Context) -> Iterator[Finding]:
    data = ctx.run_file.evaluation.data
    if data is not None:
        yield from ctx.within("evaluation.data", data_read.problems(data))
    elif ctx.stage == "evaluate":
        yield ctx.error("evaluation.data", "is required to evaluate, and missing: there are no held-out prompts")


@rule("model", "data", stages=("train", "sft"))
def every_row_can_be_used(ctx: Context) -> Iterator[Finding]:
    yield from _unusable_rows(ctx, "data", ctx.run_file.data, responses=ctx.stage == "sft")


@rule("model", "evaluation", stages=("train", "evaluate"))
def every_held_out_row_can_be_used(ctx: Context) -> Iterator[Finding]:
    if ctx.run_file.evaluation.data is not None:
        yield from _unusable_rows(ctx, "evaluation.data", ctx.run_file.evaluation.data, responses=False)


def _unusable_rows(ctx: Context, key: str, section: DataSection, responses: bool) -> Iterator[Finding]:
    """The first row of each local source that cannot become tokens. What is read here is kept for the run itself."""
    if isinstance(ctx.tokenizer, PenstockError) or list(data_read.problems(section, responses=responses)):
        return
    if any(name == "chat_template" for name, _ in models.problems(ctx.run_file.model)):
        return
    try:
        Renderer(ctx.tokenizer, section)
    except ChatError as error:
        if key != "data":  # of which another rule has spoken
            yield ctx.error(f"{key}.{error.key or 'chat_template'}", str(error))
        return
    for name, source in section.sources.items():
        try:
            if data_read.columns_of(name, source) is not None:  # on this machine; the hub is asked by the run
                opened = (PairSource if responses else PromptSource)(name, section, ctx.tokenizer)
                ctx.opened[f"{key}.sources.{name}"] = opened
        except PenstockError as error:
            yield ctx.error(f"{key}.sources.{name}", str(error))


@rule("model", "data", "evaluation", "rollout", "engine", stages=("train", "evaluate"))
def every_prompt_leaves_room_for_an_answer(ctx: Context) -> Iterator[Finding]:
    longest, evaluation = ctx.run_file.engine.max_model_len, ctx.run_file.evaluation
    for key, source in ctx.opened.items():
        section, budget = ctx.run_file.data, "rollout.sampling.max_tokens"
        answer = ctx.run_file.rollout.sampling.max_tokens
        if not key.startswith("data."):
            section = evaluation.data or section
            if evaluation.max_tokens is not None:
                budget, answer = "evaluation.max_tokens", evaluation.max_tokens
        if section.max_prompt_tokens is not None and section.max_prompt_tokens + answer <= longest:
            continue
        prefix = key.rpartition(".sources.")[0]
        remedy = (
            f"raise engine.max_model_len, or leave such rows out: {prefix}.max_prompt_tokens: "
            f"{max(1, longest - answer)} with {prefix}.too_long: drop"
        )
        if (row := source.first_longer(longest - 1)) is not None:
            problem = f"{row} tokens, engine.max_model_len is {longest}: there is no room for an answer"
            yield ctx.error(key, problem, remedy=remedy)
        elif (row := source.first_longer(longest - answer)) is not None:
            problem = f"{row} tokens, which leaves less than {budget} for the answer"
            yield ctx.warning(key, f"{problem}: of engine.max_model_len {longest}", remedy=remedy)


@rule("reward", "data", "evaluation", stages=("train", "evaluate"))
def the_rules_are_there(ctx: Context) -> Iterator[Finding]:
    reward, held_out = ctx.run_file.reward, ctx.run_file.evaluation.data
    if reward is None:
        return
    judged = {"the data": ctx.run_file.data} if ctx.stage == "train" else {}
    judged |= {"the held-out data": held_out} if held_out is not None else {}
    said: set[str] = set()
    for whose, section in judged.items():
        found = reward_check.problems(reward, _columns(section), whose)
        yield from ctx.within("reward", [(key, text) for key, text in found if key not in said])
        said |= {key for key, _ in found}


def _columns(section: DataSection) -> set[str] | None:
    """Columns that every source has; None where they cannot be known without the network."""
    common: set[str] | None = None
    for name, source in section.sources.items():
        try:
            present = data_read.columns_of(name, source)
        except PenstockError:
            return None
        if present is None:
            return None
        if not set(source.keep or ()) <= set(present):
            return None  # told where it is written
        kept = set(present if source.keep is None else source.keep)
        common = kept if common is None else common & kept
    return common


RULES = all_rules(globals())
