"""What reading a module of the user's own says of a rule in it. The module is never run."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

GIVEN = ("prompts", "completions", "completion_ids", "parts")
"""What every rule is given, beside the columns of the data and its own `args`."""
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def near(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no name is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def problems(
    name: str, folder: Path, args: Mapping[str, Any], columns: set[str] | None, whose: str
) -> list[tuple[str, str]]:
    """(key below the rule, what is wrong) of the rule `name`, which is `module:function`. `columns` are those of
    `whose` rows, None where they are not known."""
    module, _, function = name.partition(":")
    if not module or not function:
        return [("rule", f"{name!r}: a rule of your own is written module:function")]
    base = folder.joinpath(*module.split("."))
    file = next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()), None)
    if file is None:
        return [("rule", why) for why in _absent(name, module, function, folder)]
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError as error:
        return [("rule", f"{name!r}: {file} line {error.lineno}: {error.msg}")]
    except (OSError, ValueError) as error:
        return [("rule", f"{name!r}: {file} cannot be read: {error}")]
    found = [("rule", f"{name!r}: {file} {why}") for why in (*_imports(tree, folder), *_lacks(tree, function))]
    for each in tree.body:
        if isinstance(each, _Function) and each.name == function and not each.decorator_list:
            found += [(key, f"{name!r}: {file} {why}") for key, why in _arguments(each, args, columns, whose)]
    return found


def _absent(name: str, module: str, function: str, folder: Path) -> list[str]:
    """Why there is no such file; nothing where an installed module is meant, which is looked into when the rule process
    starts."""
    if module.endswith(".py"):
        return [f"{name!r}: a module is named without .py; did you mean '{Path(module).stem}:{function}'?"]
    if _installed(module.partition(".")[0]):
        return []
    if not folder.is_dir():
        return [f"{name!r}: reward.folder, where modules are looked for, is no folder: {folder}"]
    names = [p.stem for p in folder.glob("*.py")]
    file = folder.joinpath(*module.split(".")).with_suffix(".py")
    return [f"{name!r}: there is no {file} and no installed module {module!r}{near(module, names)}"]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module that is being run has no specification
        return True


def _imports(tree: ast.Module, folder: Path) -> list[str]:
    """Modules that are imported whatever happens, and are not there."""
    wanted: list[tuple[int, str]] = []
    for each in tree.body:
        if isinstance(each, ast.Import):
            wanted += [(each.lineno, alias.name) for alias in each.names]
        elif isinstance(each, ast.ImportFrom) and each.level == 0 and each.module:
            wanted.append((each.lineno, each.module))
    missing: list[str] = []
    for line, module in wanted:
        top = module.partition(".")[0]
        beside = (folder / f"{top}.py").is_file() or (folder / top).is_dir()
        if not beside and not _installed(top):
            missing.append(f"line {line} imports {module!r}, which is not installed and not in {folder}")
    return missing


def _lacks(tree: ast.Module, function: str) -> list[str]:
    """That the module has no function of this name."""
    defined = [n.name for n in tree.body if isinstance(n, _Function | ast.ClassDef)]
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    aliases = [a for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names]
    imported = {alias.asname or alias.name for alias in aliases}
    listed = f"; it has {', '.join(defined) or 'no functions'}"
    first = function.partition(".")[0]
    for each in tree.body:
        names = [t.id for t in each.targets if isinstance(t, ast.Name)] if isinstance(each, ast.Assign) else []
        if isinstance(each, ast.Assign) and function in names and isinstance(each.value, ast.Constant):
            return [f"line {each.lineno}: {function!r} is {each.value.value!r}, which is no function{listed}"]
    if first in {*defined, *bound, *imported} or "*" in imported:
        return []
    return [f"has no {function!r}{listed}{near(function, defined)}"]


def _arguments(
    function: _Function, args: Mapping[str, Any], columns: set[str] | None, whose: str
) -> list[tuple[str, str]]:
    """Arguments that nobody gives, and `args` that the function does not take."""
    taken = function.args
    positional = [*taken.posonlyargs, *taken.args]
    without = [a.arg for a in positional[: len(positional) - len(taken.defaults)]]
    without += [a.arg for a, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True) if default is None]
    names = [a.arg for a in (*positional, *taken.kwonlyargs)]
    where = f"line {function.lineno}: {function.name}"
    found: list[tuple[str, str]] = []
    if not names and taken.kwarg is None:
        # It is given, by name, what it has arguments for: this one would be called without the answers.
        return [
            (
                "rule",
                f"{where} takes no arguments, so it could not see the answers; write {function.name}"
                "(completions, **columns)",
            )
        ]
    if taken.kwarg is None:
        found += [
            (f"args.{arg}", f"{where} has no argument {arg!r}, only {', '.join(names) or 'none'}{near(arg, names)}")
            for arg in args
            if arg not in names
        ]
    given = {*GIVEN, *args, *(columns or ())}
    if columns is not None:
        found += [
            (
                "rule",
                f"{where} needs the argument {arg!r}, and of {whose} there are {', '.join(sorted(given))}"
                f"{near(arg, given)}",
            )
            for arg in without
            if arg not in given
        ]
    return found
