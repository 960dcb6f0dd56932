"""`section.key=value` from the command line, put over the values of a run file."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from penstock.deploy.findings import Finding, unknown_key
from penstock.deploy.keys import dotted, is_list, open_at, type_at
from penstock.deploy.yaml_source import KeyPath, YamlError, YamlSource, parse_value

PLACE = "command line"


def apply(source: YamlSource, overrides: Sequence[str], root: type[BaseModel]) -> tuple[YamlSource, list[Finding]]:
    """The values with every override that names an existing key, and a finding for each that does not.

    The value is read as YAML; lists are reached by index (`goals.0.at_least=0.9`); `key=null` clears a key.
    """
    values = copy.deepcopy(source.values)
    findings: list[Finding] = []
    overridden = set(source.overridden)
    for text in overrides:
        outcome = _apply_one(values, text, root)
        if isinstance(outcome, Finding):
            findings.append(outcome)
        else:
            overridden.add(outcome)
    return dataclasses.replace(source, values=values, overridden=frozenset(overridden)), findings


def _apply_one(values: dict[str, Any], text: str, root: type[BaseModel]) -> KeyPath | Finding:
    name, equals, written = text.partition("=")
    if not equals or not name.strip():
        nearest = f"{name.strip()}=…" if type_at(root, tuple(name.strip().split("."))) is not None else ""
        return Finding(text, "is no override", allowed="section.key=value", nearest=nearest, where=PLACE)
    path = tuple(int(part) if part.isdigit() else part for part in name.strip().lstrip("-").split("."))
    if type_at(root, path) is None and not open_at(root, path):
        return unknown_key(root, path, PLACE)
    try:
        value = parse_value(written)
    except YamlError as error:
        return Finding(dotted(path), error.problem, remedy=error.remedy, where=PLACE)
    return _put(values, path, value, root)


def _put(values: dict[str, Any], path: KeyPath, value: Any, root: type[BaseModel]) -> KeyPath | Finding:
    here: Any = values
    for depth, key in enumerate(path[:-1]):
        if isinstance(here, list):
            if not isinstance(key, int) or key >= len(here):
                return _no_entry(path[: depth + 1], here)
            here = here[key]
            continue
        if not isinstance(here.get(key), (dict, list)):
            here[key] = [] if is_list(type_at(root, path[: depth + 1])) else {}
        here = here[key]
    last = path[-1]
    if isinstance(here, list):
        if not isinstance(last, int) or last > len(here):
            return _no_entry(path, here)
        here[last : last + 1] = [value]  # one past the end appends
    else:
        here[last] = value
    return path


def _no_entry(path: KeyPath, there: list[Any]) -> Finding:
    allowed = f"an index from 0 to {len(there) - 1}" if there else "no index, since the list is empty"
    remedy = f"a whole entry is added by {dotted(path[:-1])}.{len(there)}={{…}}"
    return Finding(dotted(path), "there is no such entry in the list", allowed=allowed, remedy=remedy, where=PLACE)
