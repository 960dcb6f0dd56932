"""Makes what the carry recipe needs: a small untrained Qwen3 model, its tokenizer, and three files of sums.

The demonstrator adds column by column, writing from the units up as one does on paper, and forgets each carry with
probability `--forgets`, so that most of what `sft.jsonl` shows of sums with a carry is wrong. `train.jsonl` and
`heldout.jsonl` hold no demonstrations, only prompts and right answers. No sum is in two of the files, in neither
order.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations_with_replacement
from pathlib import Path

Sum = tuple[int, int]

CHARACTERS = "0123456789+="
PAD, EOS = "<pad>", "<eos>"

HELD_OUT, SHOWN = 260, 2030
"""Pairs of two-digit numbers for two of the files; the rest of the 4095, about as many as are shown, is practised."""


def add(pair: Sum, forgets: Callable[[], bool] = lambda: False) -> str:
    """The sum as someone writes it who adds column by column, units first: 58 + 67 is 521, read from the right.

    `forgets` is asked at every carry, the last too: with all of them forgotten, 58 + 67 is 51.
    """
    columns = zip(*(map(int, reversed(str(number))) for number in pair), strict=True)
    written, carry = "", 0
    for upper, lower in columns:
        total = upper + lower + carry
        written += str(total % 10)
        carry = 1 if total > 9 and not forgets() else 0
    return written + "1" if carry else written


def prompt(pair: Sum) -> str:
    """The question, without spaces: every character is a token."""
    return f"{pair[0]}+{pair[1]}="


def both_orders(pairs: Iterable[Sum]) -> list[Sum]:
    """a + b and b + a, so that neither turns up in another file than the other."""
    return [ordered for a, b in pairs for ordered in sorted({(a, b), (b, a)})]


def rows(seed: int, forgets: float, demonstrations: int) -> dict[str, list[dict[str, str]]]:
    """The rows of each file. Every shown sum is demonstrated several times, each time forgetting anew: a single
    demonstration would be learned by heart, slip and all, instead of how likely the slip is."""
    dice = random.Random(seed)
    pairs = list(combinations_with_replacement(range(10, 100), 2))
    dice.shuffle(pairs)
    held_out, shown, practised = pairs[:HELD_OUT], pairs[HELD_OUT : HELD_OUT + SHOWN], pairs[HELD_OUT + SHOWN :]

    def slips() -> bool:
        return dice.random() < forgets

    def question(pair: Sum) -> dict[str, str]:
        return {"prompt": prompt(pair), "answer": add(pair)}

    return {
        "sft": [question(pair) | {"response": add(pair, slips)} for pair in both_orders(shown) * demonstrations],
        "train": [question(pair) for pair in both_orders(practised)],
        "heldout": [question(pair) for pair in both_orders(held_out)],
    }


def write_data(folder: Path, files: dict[str, list[dict[str, str]]]) -> None:
    """One JSON object per line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def write_model(folder: Path, seed: int) -> int:
    """Model and tokenizer in Hugging Face format; returns the number of parameters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from penstock.services.models import save_model

    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        # Near 1 / sqrt(hidden size); the usual 0.02 is made for wider models, and learns addition later here.
        initializer_range=0.06,
        pad_token_id=vocabulary[PAD],
        eos_token_id=vocabulary[EOS],
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    save_model(model, tokenizer, folder)
    return int(model.num_parameters())


def main(arguments: Sequence[str] | None = None) -> None:
    """Make everything and say what was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the choice of sums and the slips")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "build", help="folder to write into")
    parser.add_argument("--forgets", type=float, default=0.7, help="probability that a carry is forgotten")
    parser.add_argument("--demonstrations", type=int, default=8, help="of every shown sum")
    chosen = parser.parse_args(arguments)
    files = rows(chosen.seed, chosen.forgets, chosen.demonstrations)
    write_data(chosen.out / "data", files)
    parameters = write_model(chosen.out / "model", chosen.seed)
    right = sum(row["response"] == row["answer"] for row in files["sft"]) / len(files["sft"])
    sizes = ", ".join(f"{name} {len(content)}" for name, content in files.items())
    print(f"model: {parameters:,} parameters in {chosen.out / 'model'}")
    print(f"data: {sizes} rows in {chosen.out / 'data'}; {right:.0%} of the demonstrations are right")


if __name__ == "__main__":
    main()
