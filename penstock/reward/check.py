"""What can be known to be wrong in a reward section without running a rule."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
from collections.abc import Iterable
from pathlib import Path

from penstock.reward.config import RewardSection, RuleSection
from penstock.reward.rules import RULES

_GIVEN = {"prompts", "completions", "completion_ids", "parts"}


def problems(section: RewardSection, columns: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """(key within the section, what is wrong and the remedy), all at once.

    `columns` are those that rewards will be given, where known; the built-in rules are checked against them.
    """
    have = None if columns is None else set(columns)
    found: list[tuple[str, str]] = []
    for part, rule in section.rules.items():
        name = rule.rule or part
        key = f"rules.{part}"
        if ":" in name:
            found += [(f"{key}.rule", text) for text in _module(name, Path(section.folder))]
        elif name not in RULES:
            text = f"there is no rule {name!r}; built in are {', '.join(RULES)}; your own is written module:function"
            found.append((f"{key}.rule", text + _near(name, RULES)))
        else:
            found += _built_in(key, name, rule, have)
    return found


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _built_in(key: str, name: str, rule: RuleSection, columns: set[str] | None) -> list[tuple[str, str]]:
    """Arguments the rule does not have or still needs, and a column the data lacks."""
    parameters = {
        p.name: p
        for p in inspect.signature(RULES[name]).parameters.values()
        if p.kind is not p.VAR_KEYWORD and p.name not in _GIVEN
    }
    listed = ", ".join(parameters) or "none"
    found = [
        (f"{key}.args.{arg}", f"the rule {name!r} has no argument {arg!r}; it has {listed}{_near(arg, parameters)}")
        for arg in rule.args
        if arg not in parameters
    ]
    found += [
        (f"{key}.args", f"the rule {name!r} needs the argument {p.name!r}")
        for p in parameters.values()
        if p.default is p.empty and p.name not in rule.args
    ]
    if columns is not None and "column" in parameters:
        column = rule.args.get("column", parameters["column"].default)
        if column is not None and column not in columns:
            text = f"the data has no column {column!r}; it has {', '.join(sorted(columns)) or 'none'}"
            found.append((f"{key}.args.column", text + _near(str(column), columns)))
    return found


def _module(name: str, folder: Path) -> list[str]:
    """Whether `module:function` is there, by reading the file and not by running it."""
    module, _, function = name.partition(":")
    if not module or not function:
        return [f"{name!r}: a rule of your own is written module:function"]
    base = folder.joinpath(*module.split("."))
    files = [base.with_suffix(".py"), base / "__init__.py"]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        if importlib.util.find_spec(module.split(".")[0]) is not None:
            return []  # installed: looked into when the rule process starts
        names = [p.stem for p in folder.glob("*.py")] if folder.is_dir() else []
        return [f"{name!r}: there is no {files[0]} and no installed module {module!r}{_near(module, names)}"]
    try:
        tree = ast.parse(file.read_text())
    except SyntaxError as error:
        return [f"{name!r}: {file} line {error.lineno}: {error.msg}"]
    functions = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    imported = {
        a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names
    }
    if function.split(".")[0] in {*functions, *bound, *imported} or "*" in imported:
        return []
    listed = ", ".join(functions) or "no functions"
    return [f"{name!r}: {file} has no {function!r}; it has {listed}{_near(function, functions)}"]
