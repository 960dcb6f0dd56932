"""Every key of a run file as tables for people, made from the sections themselves."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from penstock.deploy.keys import direct_sections
from penstock.deploy.runfile import RunFile

HEAD = """\
# Run file

A run file is YAML. It is closed: a key that is not listed here is a mistake, and `penstock check RUN.yaml` says which
key was probably meant. Any key can be overridden on the command line, `learner.learning_rate=1e-5`; lists are reached
by index, `goals.0.at_least=0.9`, and `null` clears a key.

- Paths of inputs are relative to the folder of the run file; `runs_dir` is relative to where you stand.
- Secrets are never in it: they come from environment variables, some of which the run file names. A password in a URL
  is refused.
- **↻** marks keys that may change when a run is resumed (`penstock resume RUN_DIR section.key=value`); all others must
  stay as they were.
- Editors complete and check it with `penstock schema > run.schema.json` and a first line
  `# yaml-language-server: $schema=run.schema.json`.

This page is made by `penstock schema --markdown > docs/run-file.md`.
"""
FOOT = "\n`NAME` stands for a name of your choice, `N` for a place in a list, counted from 0.\n"


def markdown() -> str:
    """The whole page."""
    return HEAD + "".join(_table("", RunFile, {})) + FOOT


def _table(prefix: str, section: type[BaseModel], described: dict[type[BaseModel], str]) -> Iterator[str]:
    """The keys of one section, then its sub-sections; keys that were listed elsewhere are only referred to."""
    title = prefix.rstrip(".")
    yield f"\n## {f'`{title}`' if title else 'Top level'}\n\n"
    if section in described:
        yield f"The same keys as `{described[section]}`.\n"
        return
    described[section] = title
    if section.__doc__ and title:
        yield _one_line(section.__doc__) + "\n\n"
    yield "| key | type | default | |\n|---|---|---|---|\n"
    below: list[tuple[str, type[BaseModel]]] = []
    for name, info in section.model_fields.items():
        children = [(f"{prefix}{name}{infix}.", child) for infix, child in _subsections(info.annotation)]
        cells = (_key(name, info), _type(info), _default(info, bool(children)), _one_line(info.description or ""))
        yield f"| {' | '.join(cells)} |\n"
        below += children
    for path, child in below:
        yield from _table(path, child, described)


def _key(name: str, info: FieldInfo) -> str:
    extra = info.json_schema_extra
    return f"`{name}`" + (" ↻" if isinstance(extra, dict) and "changeable_on_resume" in extra else "")


def _subsections(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The sections a field leads to, with what stands between the field's name and their keys."""
    sections = list(direct_sections(annotation))
    if len(sections) == 1:
        yield "", sections[0]
    for section in sections if len(sections) > 1 else ():
        kind = section.model_fields["kind"].default
        yield f" (kind: {kind})", section
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        yield from ((f".NAME{infix}", section) for infix, section in _subsections(arguments[1]))
    elif origin is tuple:
        yield from ((f".N{infix}", section) for infix, section in _subsections(arguments[0]))
    elif origin in (typing.Union, types.UnionType) and not sections:
        for argument in arguments:
            yield from _subsections(argument)


def _type(info: FieldInfo) -> str:
    bounds = [_bound(rule) for rule in info.metadata]
    return _name(info.annotation) + "".join(f", {bound}" for bound in bounds if bound)


def _bound(rule: Any) -> str:
    if isinstance(rule, Ge):
        return f"≥ {rule.ge}"
    if isinstance(rule, Gt):
        return f"> {rule.gt}"
    if isinstance(rule, Le):
        return f"≤ {rule.le}"
    if isinstance(rule, Lt):
        return f"< {rule.lt}"
    return "not empty" if isinstance(rule, MinLen) else ""


_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "anything"}


def _name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _NAMES:
        return _NAMES[annotation]
    if origin is typing.Annotated:
        bounds = [_bound(rule) for field in arguments[1:] if isinstance(field, FieldInfo) for rule in field.metadata]
        return ", ".join([_name(arguments[0]), *filter(None, bounds)])
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_name(argument) for argument in arguments))
    if origin is dict:
        return f"{_name(arguments[1])} by name"
    if origin is tuple:
        return f"list of {_name(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return "path" if getattr(annotation, "__name__", "") == "Path" else str(annotation)


def _default(info: FieldInfo, section: bool) -> str:
    default = info.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined:
        return "**required**"
    if isinstance(default, BaseModel) or (section and not default):
        return ""
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
