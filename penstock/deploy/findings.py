"""Mistakes in a run file as findings: where, what was found, what is allowed, what was probably meant."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from penstock.deploy.keys import direct_sections, dotted, names_at, nearest_key, sections_at, type_at, why_left_out
from penstock.deploy.shown import SECRET_KEY, has_secret, shown, without_password
from penstock.deploy.yaml_source import KeyPath, YamlSource
from penstock.services.settings import FORMS, WrongValue

Level = Literal["error", "warning", "note"]
"""What keeps a run from starting, what a person should look into, and what it is good to know; in this order."""


@dataclass(frozen=True)
class Finding:
    """One mistake or doubt."""

    key: str
    """Path of the key, as `store.url` or `data.sources.train.columns`."""
    problem: str
    """What is wrong."""
    level: Level = "error"
    found: str = ""
    """The value as written, secrets masked."""
    allowed: str = ""
    nearest: str = ""
    """The right name that looks most like what was written."""
    remedy: str = ""
    where: str = ""
    """FILE:LINE, or `command line`."""

    def __str__(self) -> str:
        parts = [f"{self.key}: {self.problem}"]
        parts += [f"found {self.found}"] if self.found else []
        parts += [f"allowed: {self.allowed}"] if self.allowed else []
        parts += [f"did you mean {self.nearest}?"] if self.nearest else []
        parts += [self.remedy] if self.remedy else []
        return (f"{self.where}: " if self.where else "") + f"{self.level}: " + "; ".join(parts)


# --- from what pydantic says ----------------------------------------------------------------------


def written_path(detail: Any, values: Any) -> KeyPath:
    """The path of one of pydantic's mistakes as it stands in the file: it adds the names of union members, which nobody
    wrote."""
    location = detail["loc"]
    # Where a rule about a whole section was broken, the last key may be such a name too.
    of_section = detail["type"] == "value_error" and isinstance(detail["input"], dict)
    path: list[str | int] = []
    for number, key in enumerate(location):
        last = number == len(location) - 1 and not of_section
        if isinstance(values, dict) and (key in values or last):
            values = values.get(key)
            path.append(key)
        elif isinstance(values, (list, tuple)) and isinstance(key, int) and key < len(values):
            values = values[key]
            path.append(key)
    own = _key_of_rule(detail)
    return (*path, own) if own and isinstance(values, dict) and own in values else tuple(path)


def _key_of_rule(detail: Any) -> str:
    """The key of the section that its rule blames; empty where it blames the section as a whole."""
    error = detail.get("ctx", {}).get("error")
    return error.key if isinstance(error, WrongValue) else ""


_ALLOWED = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "{min_length} or more entries",
    "string_too_short": "at least {min_length} characters",
    "too_long": "at most {max_length} entries",
    "literal_error": "{expected}",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "path_type": "text",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "list_type": "a list",
}


def from_pydantic(error: ValidationError, root: type[BaseModel], source: YamlSource) -> list[Finding]:
    """One finding per mistake, in the order of the file."""
    found: dict[tuple[KeyPath, str], Finding] = {}
    for detail in error.errors(include_url=False):
        path = written_path(detail, source.values)
        found.setdefault((path, detail["type"]), _finding(detail, path, root, source))
    ordered = sorted(found.items(), key=lambda item: source.line_of(item[0][0]))
    return [finding for _, finding in ordered]


def _finding(detail: Any, path: KeyPath, root: type[BaseModel], source: YamlSource) -> Finding:
    kind, context = detail["type"], detail.get("ctx", {})
    key, where = dotted(path) or "run file", source.place(path)
    if kind == "extra_forbidden":
        return _unknown_to_own(detail, path, where) if context else _unknown_key(detail["loc"], path, root, where)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_kind(detail, path, source)
    if kind == "missing" and isinstance(detail["loc"][-1], int):
        problem, allowed = "has too few entries", _entries(type_at(root, path)) or "more entries"
        return Finding(key, problem, found=shown(written_at(source.values, path), key), allowed=allowed, where=where)
    if kind == "missing":
        return Finding(key, "is required and missing", where=where, remedy=_help(root, path))
    value = shown(detail["input"], key) if not isinstance(detail["input"], BaseModel) else ""
    if kind == "value_error" and (blamed := _key_of_rule(detail)):
        path = path if path[-1:] == (blamed,) else (*path, blamed)
        problem, written = str(context["error"]), written_at(source.values, path)
        found = "" if "found" in problem or written is None else shown(written, blamed)
        return Finding(dotted(path), problem, found=found, where=source.place(path))
    if kind == "value_error":
        # Of a whole section what was written is shown, and not what was filled in.
        written = written_at(source.values, path) if isinstance(detail["input"], dict) else None
        found = value if not isinstance(detail["input"], dict) else shown(written) if written else ""
        problem = without_password(str(context["error"]))
        return Finding(key, problem, found="" if "found" in problem else found, where=where)
    if kind == "literal_error" and isinstance(detail["input"], str):
        words = re.findall(r"'([^']*)'", context["expected"])
        close = difflib.get_close_matches(detail["input"], words, n=1, cutoff=0.5)
        nearest = repr(close[0]) if close else ""
        return Finding(
            key, "is not one of the choices", found=value, allowed=context["expected"], nearest=nearest, where=where
        )
    meant = as_section(root, path, detail["input"]) if kind in ("model_type", "model_attributes_type") else ""
    meant = as_mapping(root, path, detail["input"]) if kind == "dict_type" else meant
    allowed = _allowed(kind, context, str(detail["msg"]))
    allowed = (_entries(type_at(root, path)) if kind in ("too_long", "tuple_type") else "") or allowed
    return Finding(key, "has a value that does not fit", found=value, allowed=allowed, nearest=meant, where=where)


def _allowed(kind: str, context: Mapping[str, Any], said: str) -> str:
    """What may stand there, by the kind of pydantic's mistake."""
    if kind == "string_pattern_mismatch":
        return FORMS.get(context["pattern"], "text that matches {pattern}").format(**context)
    whole = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in context.items()}
    return _ALLOWED.get(kind, said).format(**whole)


def _entries(annotation: Any) -> str:
    """What a list of a fixed length holds; empty for other types."""
    types = typing.get_args(annotation) if typing.get_origin(annotation) is tuple else ()
    if not types or Ellipsis in types:
        return ""
    return f"a list of {len(types)} {'numbers' if set(types) <= {int, float} else 'entries'}"


def written_at(values: Any, path: KeyPath) -> Any:
    """What the file says at `path`; None for the whole file, and where it says nothing."""
    for key in path:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return None
    return values if path else None


def unknown_key(root: type[BaseModel], path: KeyPath, where: str) -> Finding:
    """A key that nothing has."""
    known = next(path[:end] for end in range(len(path) - 1, -1, -1) if type_at(root, path[:end]) is not None)
    if why := why_left_out(root, path[: len(known) + 1]):
        return Finding(dotted(path), f"there is no such key: {why}", where=where)
    allowed, nearest = names_at(root, known), nearest_key(root, path)
    problem = "there is no such key" if allowed else f"there is no such key: {dotted(known)} has a value and no keys"
    return Finding(dotted(path), problem, allowed=", ".join(allowed), nearest=nearest, where=where)


def _unknown_key(location: Sequence[str | int], path: KeyPath, root: type[BaseModel], where: str) -> Finding:
    """A key that nothing has, or that another kind of the same section has."""
    name = str(path[-1])
    sections = list(sections_at(root, path[:-1]))
    # Where a section comes in kinds, the kind that was looked into stands before the key.
    chosen = [s for s in sections if _kind_of(s) == (location[-2] if len(location) > 1 else None)]
    if not chosen or len(sections) == 1:
        return unknown_key(root, path, where)
    allowed = sorted(chosen[0].model_fields)
    others = [repr(_kind_of(s)) for s in sections if name in s.model_fields]
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return Finding(
        dotted(path),
        f"{_kind_of(chosen[0])} has no such key",
        allowed=", ".join(allowed),
        nearest=dotted((*path[:-1], close[0])) if close and not others else "",
        remedy=f"it belongs to kind {' and '.join(others)}: set {dotted((*path[:-1], 'kind'))} too" if others else "",
        where=where,
    )


def _unknown_to_own(detail: Any, path: KeyPath, where: str) -> Finding:
    """A key that a cell of the user's own has not: its names are those of the cell, and no others."""
    location, context = detail["loc"], detail["ctx"]
    outside = len(location) - context["depth"]
    found = _unknown_key(location[outside:], path[outside:], context["cell"], where)
    nearest = dotted((*path[:outside], found.nearest)) if found.nearest else ""
    return replace(found, key=dotted(path), nearest=nearest)


def _kind_of(section: type[BaseModel]) -> Any:
    kind = section.model_fields.get("kind")
    return None if kind is None else kind.default


def as_section(root: type[BaseModel], path: KeyPath, value: Any) -> str:
    """How a plain value that stands in the place of a section was probably meant: `algorithm: {name: grpo}`; empty
    where that is not known."""
    sections = list(direct_sections(type_at(root, path)))
    kinds = [kind for section in sections if isinstance(kind := _kind_of(section), str)]
    word = "none" if value is None or value is False else value
    if len(sections) > 1 and isinstance(word, str):
        close = difflib.get_close_matches(word, kinds, n=1, cutoff=0.5)
        return f"{dotted(path)}: {{kind: {close[0]}}}" if close else ""
    if len(sections) != 1 or isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    name, first = next(iter(sections[0].model_fields.items()))
    annotation: Any = first.annotation
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError:
        return ""
    return f"{dotted(path)}: {{{name}: {without_password(str(value))}}}"


def as_mapping(root: type[BaseModel], path: KeyPath, value: Any) -> str:
    """How names, or paths, that stand in the place of sections by name were probably meant: `{exact: {}}`."""
    annotation = type_at(root, path)
    below = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is dict else ()
    sections = [section for each in below for section in direct_sections(each)]
    words = [value] if isinstance(value, str) else value
    if not sections or not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        return ""
    first, info = next(iter(sections[0].model_fields.items()))
    inside = f"{first}: {words[0]}" if info.is_required() else ""
    name = re.sub(r"\W+", "_", words[0].rpartition("/")[2].partition(".")[0]).strip("_") if inside else words[0]
    return f"{dotted(path)}: {{{name}: {{{without_password(inside)}}}}}"


def _unknown_kind(detail: Any, path: KeyPath, source: YamlSource) -> Finding:
    """A section whose `kind` is none of those there are."""
    below, expected = (*path, "kind"), str(detail["ctx"].get("expected_tags", ""))
    there, found = "tag" in detail["ctx"], detail["ctx"].get("tag")
    close = difflib.get_close_matches(str(found), re.findall(r"'([^']*)'", expected), n=1, cutoff=0.5)
    return Finding(
        dotted(below),
        "is not one of the choices" if there else "is required and missing: it says which keys there are",
        found=shown(written_at(source.values, below) if found in (None, "None") else found) if there else "",
        allowed=expected,
        nearest=repr(close[0]) if close else "",
        where=source.place(below),
    )


def _help(root: type[BaseModel], path: KeyPath) -> str:
    """The first sentence of a field's help."""
    for section in direct_sections(type_at(root, path[:-1])):
        info = section.model_fields.get(str(path[-1]))
        if info is not None and info.description:
            return "it is: " + info.description.replace("\n", " ").split(". ")[0].rstrip(".")
    return ""


# --- secrets --------------------------------------------------------------------------------------


def secrets_in_clear(source: YamlSource) -> list[Finding]:
    """Passwords and keys that were written into the run file, where config.yaml and logs would repeat them."""
    return [
        Finding(
            dotted(path),
            "a secret does not belong in a run file, because config.yaml repeats it",
            found="***",
            remedy="put it into an environment variable and name that variable here, or leave the key out",
            where=source.place(path),
        )
        for path, value in _leaves(source.values, ())
        if isinstance(value, str) and (has_secret(value) or SECRET_KEY.search(str(path[-1])))
    ]


def _leaves(values: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, (list, tuple)):
        items = enumerate(values)
    else:
        yield path, values
    for key, value in items:
        yield from _leaves(value, (*path, key))
