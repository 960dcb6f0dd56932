"""What arguments the built-in rules allow, beside their names: found before a rule is called with them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_Look = Callable[[Any], str]
"""What is allowed in the place of a value; empty where it is right."""


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "the name of a column"


def _yes_or_no(value: Any) -> str:
    return "" if isinstance(value, bool) else "true or false"


def _number(value: Any) -> str:
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return "" if right else "a number, 0 or more"


def _count(value: Any) -> str:
    right = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return "" if right else "a whole number, 1 or more"


def _pattern(value: Any) -> str:
    try:
        re.compile(value)
    except re.error as error:
        return f"a regular expression, and this is none: {error}"
    except (TypeError, RecursionError, OverflowError):
        return "a regular expression"
    return "" if isinstance(value, str) else "a regular expression"


_ALLOWED: Mapping[str, Mapping[str, _Look]] = {
    "exact": {"column": _text, "case": _yes_or_no},
    "contains": {"column": _text, "case": _yes_or_no},
    "regex": {"pattern": _pattern, "column": lambda value: "" if value is None else _text(value)},
    "numeric": {"column": _text, "tolerance": _number},
    "math": {"column": _text, "seconds": _count},
    "soft_overlong": {"max_tokens": _count, "cache_tokens": _count},
}


def problems(name: str, args: Mapping[str, Any], earlier: Sequence[str]) -> list[tuple[str, str]]:
    """(argument, what is wrong) for the built-in rule `name`; `earlier` are the parts that are judged before it."""
    looks = _ALLOWED.get(name, {})
    found = [
        (arg, f"the rule {name!r} takes here {allowed}")
        for arg, value in args.items()
        if (look := looks.get(arg)) and (allowed := look(value))
    ]
    if name == "length" and "accuracy" in args and args["accuracy"] not in earlier:
        found.append(("accuracy", f"no earlier part has this name; those are: {', '.join(earlier) or 'none'}"))
    if name == "soft_overlong" and not found and args.keys() >= {"max_tokens", "cache_tokens"}:
        most = args["max_tokens"]
        if args["cache_tokens"] > most:
            found.append(("cache_tokens", f"is more than max_tokens; allowed is up to {most}"))
    return found
