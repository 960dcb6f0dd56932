"""Values as people write them in a run file, on one line and without secrets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_USERINFO = re.compile(r"(\w+://[^/@\s:]*:)\S+@")
"""The password before the last @, which may have an @ or a slash of its own where nobody has encoded it."""
_QUERY = re.compile(
    r"([?&](?:\w*(?:password|passwd|secret|token|api_?key)|key|sig|signature)=)[^&\s'\"]+", re.IGNORECASE
)
SECRET_KEY = re.compile(
    r"(passwords?|passwd|secrets?|credentials?|(api|access|private|secret)_?keys?|(access|auth|bearer|hub|hf)_?tokens?)$",
    re.IGNORECASE,
)
_LONGEST = 80


def shown(value: Any, key: str = "") -> str:
    """`value`, which stands at a key of that name, as YAML: `true`, `null`, `'text'`, `{kind: 'cispo'}`; secrets
    masked, cut to a readable length."""
    text = _yaml(masked(value, key))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "…"


def masked(values: Any, key: str = "") -> Any:
    """The same plain values with every secret replaced by `***`."""
    if isinstance(values, Mapping):
        return {k: masked(v, str(k)) for k, v in values.items()}
    if isinstance(values, (list, tuple)):
        return [masked(v, key) for v in values]
    if isinstance(values, str):
        return "***" if SECRET_KEY.search(key) else without_password(values)
    return values


def without_password(text: str) -> str:
    """`text` with what is secret in every URL in it masked: the password, and parameters that are one by their name."""
    return _QUERY.sub(r"\1***", _USERINFO.sub(r"\1***@", text))


def has_secret(text: str) -> bool:
    """Whether there is anything in it that `without_password` masks."""
    return bool(_USERINFO.search(text) or _QUERY.search(text))


def _yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(below)}" for key, below in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    return repr(value) if isinstance(value, (str, int, float)) else repr(str(value))
