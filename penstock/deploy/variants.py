"""What to compare, from short texts: rows of the table, and the run's own row with other cells.

The texts are read, and their mistakes told, by what reads overrides of a run file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from penstock.deploy import overrides
from penstock.deploy.checks.context import standing_at
from penstock.deploy.findings import Finding, from_pydantic
from penstock.deploy.shown import shown
from penstock.deploy.yaml_source import YamlSource
from penstock.learner.algorithms import table
from penstock.learner.algorithms.contradictions import contradictions
from penstock.learner.algorithms.judging import Contradiction, Sizes
from penstock.learner.config import AlgorithmSection
from penstock.learner.variants import Asked, Variant, VariantError

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
_CHANGE = "CELL.KEY=VALUE, as trust.max_weight=3"
_BETWEEN = re.compile(r"\s+(?=[^\s=]+=)")
"""Where one change ends and the next begins; values may hold spaces."""


def asked(rows: Sequence[str], sets: Sequence[str], own: AlgorithmSection, sizes: Sizes) -> Asked:
    """The variants in `rows` (`of_row`) and `sets` (`of_own`), those that contradict themselves with the reason;
    without either, `defaults`. Raises VariantError that tells every mistake in every text."""
    if not rows and not sets:
        return defaults(own, sizes)
    made, mistakes = [], []
    texts = [*((of_row, text) for text in dict.fromkeys(rows)), *((of_own, text) for text in dict.fromkeys(sets))]
    for make, text in texts:
        try:
            made.append(make(text, own, sizes))
        except VariantError as error:
            mistakes.append(str(error))
    if mistakes:
        raise VariantError("\n".join(mistakes))
    return Asked(made, [])


def of_row(text: str, own: AlgorithmSection, sizes: Sizes) -> Variant:
    """`cispo`, `cispo objective.max_weight=3` or `mymodule:ROW …`: a row of the table with some of its cells changed.
    Modules are looked for where the run looks for them. Raises VariantError."""
    option, (name, *rest) = f"--row {text!r}", text.split(maxsplit=1) or [""]
    values = {"name": name, "folder": own.folder}
    if not name or "=" in name:
        remedy = "changes to the run's own row are given with --set" if name else ""
        allowed = f"{', '.join(table.rows())}, or MODULE:ROW"
        raise VariantError(str(Finding("name", "is no row", "error", repr(name), allowed, "", remedy, option)))
    return _variant(text, option, values, rest[0] if rest else "", sizes)


def of_own(text: str, own: AlgorithmSection, sizes: Sizes) -> Variant:
    """`trust.kind=masked_is trust.max_weight=3`: the run's own algorithm with some of its cells changed. A cell of
    another kind begins from that kind's defaults. Raises VariantError."""
    return _variant(text, f"--set {text!r}", own.model_dump(), text, sizes)


def defaults(own: AlgorithmSection, sizes: Sizes) -> Asked:
    """Every row of the table as it stands, and OWN_CORRECTIONS over the run's own; without those that contradict
    themselves, which a note names."""
    every = [of_row(name, own, sizes) for name in sorted(table.rows())]
    every += [of_own(text, own, sizes) for text in OWN_CORRECTIONS]
    names = dict.fromkeys(variant.label.split()[0] for variant in every if variant.reason)
    note = f"left out, since they do not fit this run (--row or --set says why): {', '.join(names)}"
    return Asked([variant for variant in every if not variant.reason], [note] if names else [])


def _variant(text: str, option: str, values: Mapping[str, Any], changes: str, sizes: Sizes) -> Variant:
    """`values` with `changes` put over them; `option` is what mistakes are told of."""
    given, findings = _read(changes)
    merged = {**values, **{key: _over(values.get(key), change) for key, change in given.items()}}
    section: AlgorithmSection | None = None
    try:
        section = AlgorithmSection.model_validate(merged).for_answers_of(sizes.max_tokens)
    except ValidationError as error:
        findings += from_pydantic(error, AlgorithmSection, YamlSource("", merged))
    if section is None or findings:
        raise VariantError("\n".join(str(replace(finding, where=option)) for finding in findings))
    errors = [found for found in contradictions(section, sizes) if found.level == "error"]
    return Variant(text, section, "; also ".join(_in_words(found, section, sizes) for found in errors))


def _read(changes: str) -> tuple[dict[str, Any], list[Finding]]:
    """`a.b=1 a.c=2` as {"a": {"b": 1, "c": 2}}, and a finding for each that changes no cell."""
    findings: list[Finding] = []
    written: list[str] = []
    for change in _BETWEEN.split(changes.strip()) if changes.strip() else []:
        key, equals, _ = change.partition("=")
        if not equals:
            remedy = f"for the row of that name: --row {change}" if change in table.rows() else ""
            findings.append(Finding(change, "is no change", allowed=_CHANGE, remedy=remedy))
        elif key.strip().removeprefix("algorithm.") == "name":
            findings.append(Finding("name", "a row is chosen with --row", found=change, allowed=_CHANGE))
        else:
            written.append(change.removeprefix("algorithm."))
    given, wrong = overrides.apply(YamlSource("", {}), written, AlgorithmSection)
    return given.values, findings + wrong


def _over(base: Any, change: Any) -> Any:
    """`base` with `change` put over it, cell by cell; another kind begins anew."""
    if not isinstance(base, Mapping) or not isinstance(change, Mapping):
        return change
    if change.get("kind", base.get("kind")) != base.get("kind"):
        return change
    return {**base, **{key: _over(base.get(key), value) for key, value in change.items()}}


def _in_words(found: Contradiction, section: AlgorithmSection, sizes: Sizes) -> str:
    """As `penstock check` says it."""
    name, *path = found.key.split(".")
    standing = standing_at(section, tuple(path)) if name == "algorithm" else getattr(sizes, path[-1], None)
    value = shown(standing) if standing is not None else ""
    return str(Finding(found.key, found.problem, found=value, allowed=found.allowed, remedy=found.remedy))
