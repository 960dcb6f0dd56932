"""Which of a tokenizer's files is damaged. Looked into only where the tokenizer does not load."""

from __future__ import annotations

import json
from pathlib import Path

_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")


def damaged(folder: Path) -> str:
    """The first file in `folder` that does not hold what its name says, and what to do; empty where none is found."""
    for file in (folder / name for name in _JSON):
        if file.is_file() and (why := _not_json(file)):
            return f"{file} is damaged: {why}; copy it again from where the tokenizer comes from"
    whole = folder / "tokenizer.json"
    if whole.is_file() and (why := _no_tokenizer(whole)):
        return f"{whole} is JSON and no tokenizer: {why}; copy it again, or save the tokenizer anew (save_pretrained)"
    return ""


def _not_json(file: Path) -> str:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, RecursionError) as error:
        return f"it is no JSON ({error})"
    return "" if isinstance(found, dict) else f"it holds {type(found).__name__}, and should hold an object"


def _no_tokenizer(file: Path) -> str:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  the library raises a plain Exception for whatever it finds
        return str(error)
    return ""
