"""Guards that are ready to be used by name: `guards: safe`.

Their bounds are wide: what crosses one of them is amiss in almost any run. A run that knows its own numbers sets its
own.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ErrorType

from penstock.deploy.guards.config import GuardSection

_AMISS: list[dict[str, Any]] = [
    {
        "name": "kl_high",
        "when": "kl/reference > 0.5",
        "for": 3,
        "do": [{"scale": "kl.coef", "by": 1.5, "at_most": 1.0}],
        "optional": True,
    },
    {
        "name": "ess_low",
        "when": "rollout_corr/ess < 0.3",
        "for": 3,
        "do": [{"max_lag": "tighten", "at_least": 0}],
        "cooldown": 10,
    },
    {
        "name": "gradient_high",
        "when": "actor/grad_norm > 1000",
        "for": 2,
        "do": [{"scale": "learning_rate", "by": 0.5, "at_least": 1e-9}],
    },
    {"name": "entropy_gone", "when": "actor/entropy < 0.001", "for": 10, "do": ["checkpoint", "warn"], "cooldown": 100},
    {"name": "rewards_fail", "when": "ledger/refused_share > 0.9", "for": 60, "do": ["pause"], "cooldown": 120},
    {"name": "no_progress", "when": "run/since_step > 1800", "for": 1, "do": ["warn"], "cooldown": 1800},
]
PRESETS: Mapping[str, list[dict[str, Any]]] = {
    "safe": _AMISS,
    "watch": [{**guard, "do": ["warn"]} for guard in _AMISS],
}
"""`safe` acts, `watch` only says so."""


def expanded(guards: Any) -> Any:
    """A list of guards, with those of a preset in the place of its name. Raises ValidationError with every mistake in
    them, each by the place of its guard as it was written."""
    if isinstance(guards, str):
        return _preset(guards)
    if not isinstance(guards, (list, tuple)):
        raise ValueError(
            f"is a list of guards, or the name of a preset: {', '.join(PRESETS)}; one guard is a list, too: "
            "guards: [{when: …, do: …}]"
        )
    found: list[Any] = []
    wrong: list[InitErrorDetails] = []
    for place, guard in enumerate(guards):
        try:
            if not isinstance(guard, str):
                GuardSection.model_validate(guard)
            found += _preset(guard) if isinstance(guard, str) else [guard]
        except ValidationError as error:
            wrong += [_at(place, each) for each in error.errors(include_url=False)]
        except ValueError as error:
            wrong.append(InitErrorDetails(type="value_error", loc=(place,), input=guard, ctx={"error": error}))
    if wrong:
        raise ValidationError.from_exception_data("guards", wrong)
    return found


def _at(place: int, found: ErrorDetails) -> InitErrorDetails:
    """The mistake of one guard as one of the list."""
    kind: Any = found["type"]
    context = found.get("ctx", {})
    if kind not in get_args(ErrorType):
        kind = PydanticCustomError(kind, found["msg"], context)
    return InitErrorDetails(type=kind, loc=(place, *found["loc"]), input=found["input"], ctx=context)


def written_at(guards: Any, number: int) -> str:
    """The key in the run file of the guard that is `number` once presets are expanded, where `guards` is what the file
    says."""
    if not isinstance(guards, (list, tuple)):
        return "guards"
    places = [p for p, guard in enumerate(guards) for _ in (_preset(guard) if isinstance(guard, str) else [guard])]
    return f"guards.{places[number]}" if number < len(places) else f"guards.{number}"


def _preset(name: str) -> list[dict[str, Any]]:
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"there is no preset {name!r} of guards; there are: {', '.join(PRESETS)}{hint}")
    return PRESETS[name]
