"""A YAML file as plain values, together with the line on which every key stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]


class YamlError(ValueError):
    """Text that is not YAML, or YAML that no run file can be; says file and line."""


class _Loader(yaml.SafeLoader):
    """YAML with the numbers and booleans that people mean: `1e-5` is a number, `on` and `no` are words."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # the base class's own attribute, changed for this class only
        first: [(tag, rule) for tag, rule in rules if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_NUMBER = r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN)"
_BOOL = r"true|True|TRUE|false|False|FALSE"
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(rf"^({_BOOL})$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^({_NUMBER})$"), list("-+.0123456789"))


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
    try:
        text = path.read_text()
    except OSError as error:
        raise YamlError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise YamlError(f"{path}: is not text: {error}") from error
    try:
        node = yaml.compose(text, Loader=_Loader)
        lines: dict[KeyPath, int] = {}
        if node is not None:
            _collect(node, (), lines, str(path))
        values = yaml.load(text, Loader=_Loader)  # a SafeLoader with other numbers
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise YamlError(f"{where}: {error.problem or 'not YAML'}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        raise YamlError(f"{path}:1: a run file is a mapping of keys to values, found {found}")
    return YamlSource(str(path), values, lines)


def parse_value(text: str) -> Any:
    """One value as YAML reads it: `3`, `1e-5`, `true`, `[1, 2]`, `{a: 1}`, `null`, words. Raises YamlError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise YamlError(f"not a YAML value: {text!r}") from error


def _collect(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], file: str) -> None:
    """Record the line of every key below `node`; refuse a key that stands twice, which YAML would let pass."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, key.value)
            line = key.start_mark.line + 1
            if below in lines:
                name = ".".join(map(str, below))
                raise YamlError(f"{file}:{line}: {name} stands twice, first on line {lines[below]}; keep one of them")
            lines[below] = line
            _collect(value, below, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*path, index] = item.start_mark.line + 1
            _collect(item, (*path, index), lines, file)
