"""The two tasks: sums with a carry, from the demo's fine-tuned model, and answers of geometric length."""

from __future__ import annotations

import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.carry import inputs_of

GROUPS, GROUP_SIZE = 32, 8
"""Prompts per step, and answers to each."""
LONGEST = 500
MEAN = 85
"""Tokens of an answer of geometric length, before the longest are cut off."""


@dataclass(frozen=True)
class Task:
    """What both sides are given."""

    name: Literal["short", "long_tail"]
    model: Path
    prompts: Path
    """JSON lines with `prompt` and `answer`."""
    rule: Literal["exact", "contains"]
    max_tokens: int
    context: int
    learning_rate: float
    warmup: int
    steps: int
    compiled: bool
    """Whether the engine compiles the model when it starts, which pays where answers are long."""


def short(seed: int) -> Task:
    """The carry recipe with its own numbers."""
    model, data = inputs_of(seed)
    return Task("short", model, data / "train.jsonl", "exact", 6, 32, 3e-4, 10, 80, compiled=False)


def long_tail(seed: int, folder: Path, steps: int) -> Task:
    """Every token ends the answer with probability 1/85; nothing is learned, and no group is left out."""
    made = folder / f"long-tail-{seed}"
    if not (made / "prompts.jsonl").exists():
        _geometric(made / "model", seed)
        rows = [{"prompt": f"{a}+{b}=", "answer": str((a + b) % 10)} for a in range(10, 60) for b in range(10, 60)]
        (made / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Task(
        "long_tail",
        made / "model",
        made / "prompts.jsonl",
        "contains",
        LONGEST,
        LONGEST + 32,
        1e-10,
        0,
        steps,
        compiled=True,
    )


def _geometric(folder: Path, seed: int) -> None:
    """The demo's architecture over 85 tokens, with an output layer of zeros: every token is as likely as another, and
    one of them is the end."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    letters = [*"0123456789+=", *string.ascii_letters, *string.punctuation.replace("+", "").replace("=", "")]
    vocabulary = {word: index for index, word in enumerate(["<eos>", "<pad>", *letters][:MEAN])}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=MEAN,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            initializer_range=0.06,
            pad_token_id=1,
            eos_token_id=0,
            bos_token_id=None,
        )
    )
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(folder)
