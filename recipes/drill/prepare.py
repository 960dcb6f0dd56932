"""What the drill needs: a model of 30 thousand random weights, its tokenizer, and one-digit sums.

python recipes/drill/prepare.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

DIGITS = "0123456789+="
END = 0


def prepare(folder: Path) -> None:
    """Write `model/` and `sums.jsonl` into `folder`, the same every time."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = ["[end]", "[unknown]", *DIGITS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unknown]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="[end]", pad_token="[end]", unk_token="[unknown]"
    ).save_pretrained(folder / "model")
    torch.manual_seed(0)
    Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            eos_token_id=END,
            bos_token_id=END,
        )
    ).save_pretrained(folder / "model")
    sums = [{"prompt": f"{a}+{b}=", "answer": str((a + b) % 10)} for a in range(10) for b in range(10)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    prepare(Path(sys.argv[1]))
