"""Models of some tens of thousands of weights and tokenizers of some tens of words, in Hugging Face format, made in
milliseconds: those of all tests.

Nothing heavy is imported before one is asked for, and never an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

CHARACTERS = "0123456789+-=? abcdefghijklmnopqrstuvwxyz<>|\n"
EOS = 0
BOS = 1
TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}"
    "{% if m.role == 'assistant' %}[eos]{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
"""user `hi` → `<u>hi` and a line break, then `<a>` for the answer; an answer ends with the end-of-sequence token."""

SIZES: dict[str, Any] = {
    "vocab_size": len(CHARACTERS) + 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "pad_token_id": None,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
}
EXPERTS: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 24, "norm_topk_prob": True},
    "Mixtral": {"num_local_experts": 4},
    "DeepseekV3": {"n_routed_experts": 4, "moe_intermediate_size": 24, "first_k_dense_replace": 0},
}
"""Families with experts: four in every layer, of which two are used."""


def ids_of(text: str) -> list[int]:
    """The ids worked out by hand: the position in CHARACTERS behind the two special tokens."""
    return [CHARACTERS.index(c) + 2 for c in text]


def tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """One token per character."""
    made = tokenizer_of(["[eos]", "[bos]", *CHARACTERS], unknown="?", eos_token="[eos]", bos_token="[bos]")
    if chat:
        made.chat_template = TEMPLATE
    return made


def tokenizer_of(words: Sequence[str], unknown: str, spaced: bool = False, **special: str) -> PreTrainedTokenizerFast:
    """Each word is a token; words are `spaced` apart, or single characters side by side."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    if spaced:
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def config(family: str = "Qwen3", **changes: Any) -> PretrainedConfig:
    """By the name that transformers has for it, such as `Qwen3Moe`."""
    import transformers

    experts = {"num_experts_per_tok": 2, **EXPERTS[family]} if family in EXPERTS else {}
    architecture = [f"{family}ForCausalLM"]
    made: PretrainedConfig = getattr(transformers, f"{family}Config")(
        **SIZES | experts | {"architectures": architecture} | changes
    )
    return made


def model(seed: int = 0, family: str = "Qwen3", **changes: Any) -> PreTrainedModel:
    """With random weights, in evaluation mode."""
    import torch
    import transformers

    torch.manual_seed(seed)
    made: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config(family, **changes)).eval()
    return made


def save_weightless(folder: Path, **changes: Any) -> Path:
    """A model for those who look and never load: its configuration, and a weight file with the embedding alone."""
    import numpy as np
    from safetensors.numpy import save_file

    config(**changes).save_pretrained(folder)
    shape = (SIZES["vocab_size"], SIZES["hidden_size"])
    save_file({"model.embed_tokens.weight": np.zeros(shape, np.float32)}, folder / "model.safetensors")
    return folder
