"""What can be known to be wrong in a reward section without running a rule."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path

from penstock.reward import arguments, own
from penstock.reward.config import RewardSection, RuleSection
from penstock.reward.own import near
from penstock.reward.rules import RULES


def problems(
    section: RewardSection, columns: Iterable[str] | None = None, whose: str = "the data"
) -> list[tuple[str, str]]:
    """(key within the section, what is wrong and the remedy), all at once.

    `columns` are those that rewards will be given with the rows of `whose`, where known; rules are checked against
    them.
    """
    have = None if columns is None else set(columns)
    found: list[tuple[str, str]] = []
    for number, (part, rule) in enumerate(section.rules.items()):
        name = rule.rule or part
        key = f"rules.{part}"
        if ":" in name:
            told = own.problems(name, Path(section.folder), rule.args, have, whose)
            found += [(f"{key}.{below}", text) for below, text in told]
        elif name not in RULES:
            text = f"there is no rule {name!r}; built in are {', '.join(RULES)}; your own is written module:function"
            module, _, function = name.rpartition(".")
            dotted = (Path(section.folder) / f"{module}.py").is_file()
            hint = f"; did you mean '{module}:{function}'?" if dotted else near(name, RULES)
            found.append((f"{key}.rule", text + hint))
        else:
            found += _built_in(key, name, rule, have, whose)
            earlier = list(section.rules)[:number]
            found += [(f"{key}.args.{arg}", text) for arg, text in arguments.problems(name, rule.args, earlier)]
    return found


def _built_in(key: str, name: str, rule: RuleSection, columns: set[str] | None, whose: str) -> list[tuple[str, str]]:
    """Arguments the rule does not have or still needs, and a column the data lacks."""
    parameters = {
        p.name: p
        for p in inspect.signature(RULES[name]).parameters.values()
        if p.kind is not p.VAR_KEYWORD and p.name not in own.GIVEN
    }
    listed = ", ".join(parameters) or "none"
    found = [
        (f"{key}.args.{arg}", f"the rule {name!r} has no argument {arg!r}; it has {listed}{near(arg, parameters)}")
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
        if isinstance(column, str) and column not in columns:
            text = f"{whose} has no column {column!r}; it has {', '.join(sorted(columns)) or 'none'}"
            found.append((f"{key}.args.column", text + near(column, columns)))
    return found
