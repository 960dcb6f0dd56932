"""The text of every single token."""

from __future__ import annotations

from pathlib import Path

import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from penstock.services.token_texts import find_tokenizer, texts_by, texts_of


def _bytes() -> Tokenizer:
    """One token per byte, as byte-level tokenizers have them where they know no longer piece."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def test_the_last_part_of_a_character_has_the_whole_of_it() -> None:
    tokenizer = _bytes()
    ids = tokenizer.encode("aé→b").ids
    assert len(ids) == 1 + 2 + 3 + 1
    assert texts_of(tokenizer, ids) == ["a", "", "é", "", "", "→", "b"]


def test_texts_side_by_side_are_the_text() -> None:
    tokenizer = _bytes()
    text = "1 + 2 =\n<b>3</b> \t ✓"
    assert "".join(texts_of(tokenizer, tokenizer.encode(text).ids)) == text


def test_special_tokens_are_shown() -> None:
    assert texts_by(tiny.tokenizer(), [*tiny.ids_of("4+4"), tiny.EOS]) == ["4", "+", "4", "[eos]"]


def test_spaces_belong_to_the_token_that_brings_them() -> None:
    words = tiny.tokenizer_of(["<eos>", "one", "two"], unknown="<eos>", spaced=True, eos_token="<eos>")
    assert texts_by(words, [1, 2]) == ["one", " two"]


def test_a_tokenizer_without_a_backend_names_its_tokens() -> None:
    class Plain:
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return [f"t{i}" for i in ids]

    assert texts_by(Plain(), [3, 4]) == ["t3", "t4"]


def test_the_first_tokenizer_that_is_there_is_taken(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    found = find_tokenizer(None, str(tmp_path / "gone"), tmp_path / "model")
    assert found is not None
    assert texts_of(found, tiny.ids_of("4=")) == ["4", "="]
    assert find_tokenizer("owner/never-downloaded", tmp_path) is None
