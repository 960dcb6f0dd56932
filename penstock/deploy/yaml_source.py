"""A YAML file as plain values, together with the line on which every key stands."""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


class YamlError(ValueError):
    """Text that is not YAML, or YAML that no run file can be; says file and line."""

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        super().__init__(f"{where}: {problem}" + (f"; {remedy}" if remedy else ""))
        self.where, self.problem, self.remedy = where, problem, remedy


_TAG = "tag:yaml.org,2002:"
_MEANT_OTHERWISE = tuple(_TAG + kind for kind in ("float", "bool", "timestamp"))


class _Loader(yaml.SafeLoader):
    """YAML with the values that people mean: `1e-5` is a number; `on`, `no` and `2026-01-31` are words."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # the base class's own attribute, changed for this class only
        first: [(tag, rule) for tag, rule in rules if tag not in _MEANT_OTHERWISE]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_NUMBER = r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN)"
_BOOL = r"true|True|TRUE|false|False|FALSE"
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(rf"^({_BOOL})$"), list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}float", re.compile(rf"^({_NUMBER})$"), list("-+.0123456789"))


@dataclass(frozen=True)
class YamlSource:
    """The values of a file and where each key stands."""

    file: str
    values: dict[str, Any]
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    overridden: frozenset[KeyPath] = frozenset()
    """Keys whose values came from the command line."""

    def line_of(self, path: KeyPath) -> int:
        """The line of `path` or of the nearest key around it; 0 for values that are in no file."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.overridden:
                return 0
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return 0

    def place(self, path: KeyPath) -> str:
        """FILE:LINE, `command line`, or just the file."""
        if any(path[:end] in self.overridden for end in range(len(path), 0, -1)):
            return "command line"
        if path not in self.lines and any(key[: len(path)] == path for key in self.overridden):
            return "command line"  # a section that stands there only because a key of it was given
        line = self.line_of(path)
        return f"{self.file}:{line}" if line else self.file


def read_yaml(path: Path) -> YamlSource:
    """Raises YamlError with file and line for what is no mapping of keys to values."""
    text = _text(path)
    lines: dict[KeyPath, int] = {}
    try:
        values = _values(text, lines, str(path))
    except yaml.YAMLError as error:
        raise _not_yaml(error, path, text) from error
    except RecursionError:
        raise YamlError(str(path), "is nested too deeply, or an alias in it (`*name`) contains itself") from None
    if not isinstance(values, dict):
        found = "nothing" if values is None else "a list" if isinstance(values, list) else "one value"
        remedy = "" if path.stat().st_size else "the file is empty"
        raise YamlError(f"{path}:1", f"a run file is a mapping of keys to values, found {found}", remedy)
    return YamlSource(str(path), values, lines)


def parse_value(text: str) -> Any:
    """One value as YAML reads it: `3`, `1e-5`, `true`, `[1, 2]`, `{a: 1}`, `null`, words. Raises YamlError."""
    try:
        return _values(text, {}, _COMMAND_LINE)
    except (yaml.YAMLError, RecursionError) as error:
        problem = f"not a YAML value: {text!r}"
        raise YamlError(_COMMAND_LINE, problem, "text with : # { or [ in it goes in quotes") from error


def _values(text: str, lines: dict[KeyPath, int], file: str) -> Any:
    """The values of one document, the line of every key recorded in `lines`. Raises YamlError and yaml.YAMLError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _collect(node, (), lines, file)
        return loader.construct_document(node)
    finally:
        loader.dispose()


_COMMAND_LINE = "command line"


def _text(path: Path) -> str:
    """What the file says. Raises YamlError for one that cannot be read, or is no text as UTF-8."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise YamlError(str(path), "there is no such file", _nearest_file(path)) from None
    except IsADirectoryError:
        raise YamlError(str(path), "is a folder, and a run file is wanted", _nearest_file(path / "*")) from None
    except OSError as error:
        raise YamlError(str(path), f"cannot be read: {error.strerror}") from error
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise YamlError(f"{path}:1", "is UTF-16", _AS_UTF8)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise YamlError(f"{path}:{line}", f"byte {raw[error.start]:#04x} is no UTF-8", _AS_UTF8) from error


_AS_UTF8 = "save the file as UTF-8"


def _nearest_file(path: Path) -> str:
    """Which run file beside `path`, or in the folder of `FOLDER/*`, was probably meant."""
    there = sorted(file.name for file in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.5)
    if near:
        return f"did you mean {path.parent / near[0]}?"
    return f"{path.parent} has {', '.join(there[:5])}" if there else ""


def _not_yaml(error: yaml.YAMLError, path: Path, text: str) -> YamlError:
    """What is wrong, in words that need no knowledge of the parser, and the line it was noticed on."""
    if isinstance(error, yaml.reader.ReaderError):  # no mark, but a place in the text
        line = text.count("\n", 0, error.position) + 1
        return YamlError(
            f"{path}:{line}", f"character {error.character:#x} cannot stand in YAML", "is this a text file?"
        )
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if mark is None or not isinstance(error, yaml.MarkedYAMLError):
        return YamlError(str(path), f"not YAML: {error}")
    problem, remedy = error.problem or "", ""
    for sign, said, help_ in _PARSER_SAYS:
        if sign in problem:
            problem, remedy = said or problem, help_
    opened = error.context_mark.line if error.context_mark is not None else mark.line
    since = f" (in what begins on line {opened + 1})" if opened != mark.line else ""
    return YamlError(f"{path}:{mark.line + 1}", f"not YAML at column {mark.column + 1}: {problem}{since}", remedy)


_PARSER_SAYS = (
    ("'\\t'", "a tab", "YAML is indented with spaces"),
    (
        "mapping values are not allowed",
        "a colon where no key can be",
        "text with `: ` in it goes in quotes; is it indented right?",
    ),
    ("that cannot start any token", "", "text that begins with this character goes in quotes"),
    ("unexpected end of stream", "the file ends too early", "a quote, a { or a [ is not closed"),
    ("could not determine a constructor", "", "a run file holds plain values, and no tags such as !name"),
    ("expected ',' or '}'", "", "a { without its }, or a comma is missing"),
    ("expected ',' or ']'", "", "a [ without its ], or a comma is missing"),
    ("but found another document", "a second document", "a run file is one document, without a line ---"),
    ("found undefined alias", "", "text that begins with * goes in quotes"),
    ("expected <block end>", "", "are the lines indented alike?"),
    ("could not find expected ':'", "a key without its colon", "is the line above complete?"),
)
"""What the parser says, what it means where that is not plain, and what helps."""


def _collect(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], file: str) -> None:
    """Record the line of every key below `node`; refuse a key that stands twice, which YAML would let pass. Keys are
    names, whatever they look like: `3`, `true`."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise YamlError(f"{file}:{line}", "a key is a name, found a list or a mapping", "{{ }} goes in quotes")
            if key.tag != f"{_TAG}merge":
                key.tag = f"{_TAG}str"
            below = (*path, key.value)
            if below in lines:
                name = ".".join(map(str, below))
                raise YamlError(
                    f"{file}:{line}", f"{name} stands twice, first on line {lines[below]}", "keep one of them"
                )
            lines[below] = line
            _collect(value, below, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*path, index] = item.start_mark.line + 1
            _collect(item, (*path, index), lines, file)
