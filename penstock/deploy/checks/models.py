"""Rules about models and tokenizers: they are there, whole, and fit each other. Loads no weights."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from penstock.deploy.checks.context import STAGES, Context, all_rules, rule
from penstock.deploy.findings import Finding
from penstock.services import model_facts, models
from penstock.services.chat import ChatError, Renderer
from penstock.services.contracts import PenstockError

ENDINGS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
"""Of the names of architectures that write text from left to right."""


@rule("model", stages=STAGES)
def the_model_is_there(ctx: Context) -> Iterator[Finding]:
    found = models.problems(ctx.run_file.model)
    yield from ctx.within("model", found)
    if isinstance(ctx.model, PenstockError):
        if not any(key == "path" for key, _ in found):
            yield ctx.error("model.path", str(ctx.model))
    elif not ctx.model.architecture.endswith(ENDINGS) and not ctx.run_file.model.trust_remote_code:
        problem = f"its architecture is {ctx.model.architecture}, which is no model that writes text"
        yield ctx.error("model.path", problem, allowed=f"names that end in {', '.join(ENDINGS)}")


@rule("model", stages=STAGES)
def transformers_has_classes_for_the_model(ctx: Context) -> Iterator[Finding]:
    if isinstance(ctx.model, PenstockError) or ctx.run_file.model.trust_remote_code:
        return
    if ctx.model.has_code or not ctx.model.model_type:
        return  # what transformers makes of these is known when it loads them
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # the tokenizer needs it all the same

    kind = ctx.model.model_type
    if kind not in CONFIG_MAPPING_NAMES:
        close = difflib.get_close_matches(kind, CONFIG_MAPPING_NAMES, n=1)
        yield ctx.error(
            "model.path",
            f"its config.json says model_type {kind!r}, and the transformers that is installed has no classes for it",
            nearest=f"model_type {close[0]!r}" if close else "",
            remedy="correct config.json, or install a transformers that knows it",
        )


@rule("reward", "model")
def the_reference_model_is_there(ctx: Context) -> Iterator[Finding]:
    reference = ctx.run_file.reward.reference.model if ctx.run_file.reward else None
    if reference is None:
        return
    found = models.problems(reference)
    # It is given token ids: a tokenizer of its own is of no use to it.
    yield from ctx.within("reward.reference.model", [each for each in found if each[0] != "tokenizer"])
    if isinstance(ctx.model, PenstockError) or any(key == "path" for key, _ in found):
        return
    try:
        known = model_facts.describe(reference.path, reference.revision).vocab
    except PenstockError as error:
        yield ctx.error("reward.reference.model.path", str(error))
        return
    if known < ctx.model.vocab:
        problem = f"this model knows {known} tokens and the policy {ctx.model.vocab}"
        yield ctx.error("reward.reference.model.path", problem, remedy="a model with the policy's tokenizer")


@rule("model", stages=STAGES)
def the_tokenizer_loads(ctx: Context) -> Iterator[Finding]:
    model = ctx.run_file.model
    # A model that cannot be had has been reported; a tokenizer of its own is looked at all the same.
    own = model.tokenizer is not None
    said = any(key in ("tokenizer", "chat_template") for key, _ in models.problems(model))
    if isinstance(ctx.tokenizer, PenstockError) and not said and (own or not isinstance(ctx.model, PenstockError)):
        yield ctx.error("model.tokenizer" if own else "model.path", str(ctx.tokenizer))


@rule("model", stages=STAGES)
def the_tokenizer_fits_the_model(ctx: Context) -> Iterator[Finding]:
    if isinstance(ctx.tokenizer, PenstockError) or isinstance(ctx.model, PenstockError):
        return
    key = "model.tokenizer" if ctx.run_file.model.tokenizer else "model.path"
    largest, end, ends = max(ctx.tokenizer.get_vocab().values()), ctx.tokenizer.eos_token_id, ctx.model.eos_token_ids
    if largest >= ctx.model.vocab:
        token = ctx.tokenizer.convert_ids_to_tokens(largest)
        yield ctx.error(
            key,
            f"the tokenizer does not fit the model: it has ids up to {largest} ({token!r}), and the model's embedding "
            f"ends at {ctx.model.vocab - 1}",
            remedy="take the model's own tokenizer, or resize the model's embedding (resize_token_embeddings)",
        )
    elif ends and end not in ends:
        yield ctx.warning(
            key,
            f"the tokenizer ends texts with id {end} ({ctx.tokenizer.eos_token!r}), config.json of the model with "
            f"{', '.join(map(str, ends))}: answers end by the tokenizer's",
            remedy="if the model was made with another tokenizer, take that one",
        )


@rule("model", "data", stages=STAGES)
def the_chat_template_is_there(ctx: Context) -> Iterator[Finding]:
    if isinstance(ctx.tokenizer, PenstockError):
        return
    try:
        Renderer(ctx.tokenizer, ctx.run_file.data)
    except ChatError as error:
        yield ctx.error(f"data.{error.key or 'chat_template'}", str(error))


@rule("model", "rollout")
def stop_texts_are_single_tokens(ctx: Context) -> Iterator[Finding]:
    if isinstance(ctx.tokenizer, PenstockError):
        return
    for number, text in enumerate(ctx.run_file.rollout.sampling.stop):
        ids = ctx.tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) != 1:
            key = f"rollout.sampling.stop.{number}"
            yield ctx.error(key, f"is {len(ids)} tokens of this tokenizer", allowed="texts that are one token")


@rule("model", "engine", "rollout", "evaluation")
def the_model_is_long_enough(ctx: Context) -> Iterator[Finding]:
    if isinstance(ctx.model, PenstockError) or ctx.model.max_positions <= 0:
        return
    most, answer = ctx.model.max_positions, ctx.run_file.rollout.sampling.max_tokens
    problem = f"the model was made for {most} positions"
    if ctx.run_file.engine.max_model_len > most:
        yield ctx.error("engine.max_model_len", problem, allowed=f"up to {most}")
        if answer >= most:  # the same round: lowering the other would only bring this up
            yield ctx.error("rollout.sampling.max_tokens", problem, allowed=f"up to {most - 1}")
        if (ctx.run_file.evaluation.max_tokens or 0) >= most:
            yield ctx.error("evaluation.max_tokens", problem, allowed=f"up to {most - 1}")


RULES = all_rules(globals())
