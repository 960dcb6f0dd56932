"""Reads what a model's config.json says, and gathers everything in it that is not of the type it should have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from penstock.services.model_config import ModelError

_LONGEST = 60


class ConfigValues:
    """Numbers of one configuration. A wrong one is noted and stands as the least that is allowed; `require` tells all
    of them at once."""

    def __init__(self, whose: str, values: Mapping[str, Any]) -> None:
        self._whose, self._values = whose, values
        self._wrong: dict[str, str] = {}

    def count(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        """The first of `keys` that is written; `default` where none is, or null, and without one that is a mistake."""
        for key in keys:
            value = self._values.get(key)
            if value is None and not (default is None and key in self._values):
                continue
            number = _whole(value)
            if number is None or number < least:
                return self._note(key, value, f"a whole number from {least} on", least)
            return number
        return default if default is not None else self._note(keys[0], None, f"a whole number from {least} on", least)

    def token_ids(self, key: str, otherwise: Any = None) -> tuple[int, ...]:
        """One id or a list of them; `otherwise` is what stands elsewhere where nothing stands here."""
        value = self._values.get(key, otherwise)
        written = value if isinstance(value, list) else [] if value is None else [value]
        ids = [_whole(each) for each in written]
        if any(each is None for each in ids):
            self._note(key, value, "a token's id, or a list of ids", 0)
        return tuple(each for each in ids if each is not None)

    def require(self) -> None:
        """Raises ModelError with every mistake noted so far."""
        if self._wrong:
            raise ModelError(
                f"config.json of {self._whose!r}: {'; '.join(self._wrong.values())}; copy the model's own again"
            )

    def _note(self, key: str, value: Any, allowed: str, stand_in: int) -> int:
        self._wrong[key] = f"{key} is {brief(value)}, allowed is {allowed}"
        return stand_in


def brief(value: Any) -> str:
    """As JSON, cut to a readable length."""
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _whole(value: Any) -> int | None:
    """None for what is no whole number: `true` is none, `8.0` is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value == value // 1 else None
