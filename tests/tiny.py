"""A tokenizer of single characters and a model of 26 thousand weights, in Hugging Face format, made in milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CHARACTERS = "0123456789+-=? abcdefghijklmnopqrstuvwxyz<>|\n"
EOS = 0
BOS = 1

TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}"
    "{% if m.role == 'assistant' %}[eos]{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
"""user `hi` → `<u>hi` and a line break, then `<a>` for the answer; an answer ends with the end-of-sequence token."""


def ids_of(text: str) -> list[int]:
    """The ids worked out by hand: the position in CHARACTERS behind the two special tokens."""
    return [CHARACTERS.index(c) + 2 for c in text]


def tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {name: i for i, name in enumerate(["[eos]", "[bos]", *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[eos]", bos_token="[bos]")
    if chat:
        made.chat_template = TEMPLATE
    return made


def model(seed: int = 0, tied: bool = True) -> PreTrainedModel:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(CHARACTERS) + 2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        eos_token_id=EOS,
        bos_token_id=BOS,
    )
    made: PreTrainedModel = Qwen3ForCausalLM(config).eval()
    return made
