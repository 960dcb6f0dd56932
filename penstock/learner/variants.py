"""Other algorithms for a batch: rows of the table, and the run's own row with other cells, from short texts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from penstock.learner.algorithms import table
from penstock.learner.config import AlgorithmSection
from penstock.services.contracts import PenstockError

OWN_CORRECTIONS = (
    "trust.kind=none",
    "trust.kind=truncated_is trust.max_weight=1.5",
    "trust.kind=truncated_is trust.max_weight=2",
    "trust.kind=truncated_is trust.max_weight=5",
    "trust.kind=masked_is",
    "trust.kind=sequence_is",
    "trust.kind=sequence_is trust.aggregate=geometric_mean",
    "trust.kind=decoupled",
    "reject.kind=off_policy_sequence",
    "reject.kind=second_moment",
)
"""What is tried over the run's own row when nothing is asked for."""


class VariantError(PenstockError):
    """A variant that cannot be; the text says which part of it and what is allowed."""


@dataclass(frozen=True)
class Variant:
    """An algorithm under which batches are evaluated."""

    label: str
    section: AlgorithmSection


def of_row(text: str, longest: int) -> Variant:
    """`cispo`, `cispo objective.max_weight=3` or `mymodule:ROW …`: a row of the table with some of its cells changed.
    `longest` is the run's budget of tokens for an answer. Raises VariantError."""
    if not text.strip():
        raise VariantError(f"--row {text!r} names no row; there are {', '.join(table.rows())}, or MODULE:ROW")
    name, *assignments = text.split()
    try:
        table.find(name)
    except (ValueError, ImportError) as error:
        raise VariantError(f"--row {text!r}: {error}") from error
    return Variant(text, _section({"name": name, **_nested(text, assignments)}, text, longest))


def of_own(text: str, own: AlgorithmSection, longest: int) -> Variant:
    """`trust.kind=masked_is trust.max_weight=3`: the run's own algorithm with some of its cells changed. A cell of
    another kind begins from that kind's defaults. Raises VariantError."""
    changes = _nested(text, text.split())
    values = {key: _over(value, changes[key]) if key in changes else value for key, value in own.model_dump().items()}
    values |= {key: value for key, value in changes.items() if key not in values}
    return Variant(text, _section(values, text, longest))


def defaults(own: AlgorithmSection, longest: int) -> list[Variant]:
    """Every row of the table as it stands, and OWN_CORRECTIONS over the run's own."""
    rows = [of_row(name, longest) for name in sorted(table.rows())]
    return rows + [of_own(text, own, longest) for text in OWN_CORRECTIONS]


def _section(values: Mapping[str, Any], text: str, longest: int) -> AlgorithmSection:
    try:
        return AlgorithmSection.model_validate(values).for_answers_of(longest)
    except ValidationError as error:
        said = "; ".join(_in_words(detail) for detail in error.errors(include_url=False))
        raise VariantError(f"{text!r}: {said}") from error


def _in_words(detail: Any) -> str:
    key, message = ".".join(str(part) for part in detail["loc"]), str(detail["msg"])
    if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
        near = difflib.get_close_matches(key, AlgorithmSection.model_fields, n=1)
        message = "there is no such cell" + (f"; did you mean {near[0]}?" if near else "")
    return f"{key}: {message}" if key else message


def _nested(text: str, assignments: Sequence[str]) -> dict[str, Any]:
    """`a.b=1 a.c=2` as {"a": {"b": 1, "c": 2}}; values are read as YAML."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, written = assignment.partition("=")
        path = key.removeprefix("algorithm.").split(".")
        if not equals or not all(path):
            raise VariantError(f"{text!r}: {assignment!r} is no CELL.KEY=VALUE, for example trust.max_weight=3")
        here = found
        for part in path[:-1]:
            here = here.setdefault(part, {})
        try:
            here[path[-1]] = yaml.safe_load(written)
        except yaml.YAMLError as error:
            raise VariantError(f"{text!r}: {written!r} is not YAML: {error}") from error
    return found


def _over(base: Any, change: Any) -> Any:
    """`base` with `change` put over it, cell by cell; another kind begins anew."""
    if not isinstance(base, Mapping) or not isinstance(change, Mapping):
        return change
    if change.get("kind", base.get("kind")) != base.get("kind"):
        return change
    return {**base, **{key: _over(base.get(key), value) for key, value in change.items()}}
