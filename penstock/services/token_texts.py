"""The text of every single token, for people to read. Needs the `tokenizers` library only: no torch, no model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FILE = "tokenizer.json"


def texts_of(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[str]:
    """What each token adds to the text. A token that ends in the middle of a character adds nothing; the one that
    completes it adds the whole character. Special tokens are shown as they are called."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(tokenizer, token) or "" for token in tokens]


def texts_by(tokenizer: Any, tokens: Iterable[int]) -> list[str]:
    """The same by a tokenizer of transformers; one that is written in Python gives its names of the tokens."""
    ids = [int(token) for token in tokens]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return texts_of(backend, ids)
    return [str(text) for text in tokenizer.convert_ids_to_tokens(ids)]


def find_tokenizer(*places: Path | str | None, revision: str | None = None) -> Tokenizer | None:
    """The first tokenizer that is there: in a folder, or under its hub id among the files that were downloaded before.
    Nothing is downloaded. None where there is none."""
    from tokenizers import Tokenizer

    for place in places:
        file = _file_in(place, revision) if place is not None else None
        if file is not None:
            found: Tokenizer = Tokenizer.from_file(str(file))
            return found
    return None


def _file_in(place: Path | str, revision: str | None) -> Path | None:
    if (Path(place) / _FILE).is_file():
        return Path(place) / _FILE
    if isinstance(place, Path) or place.startswith(("/", ".", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(place, _FILE, revision=revision)
    except HFValidationError:  # a folder that is gone
        return None
    return Path(cached) if isinstance(cached, str) else None
