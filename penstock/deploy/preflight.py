"""`penstock check`: everything that can be known to be wrong with a run file before anything starts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from penstock.deploy.checks import (
    algorithm,
    cluster,
    evidence,
    guards,
    inputs,
    models,
    numbers,
    sampling,
    scaling,
    tracking,
    world,
)
from penstock.deploy.checks.context import Context, Rule, Stage
from penstock.deploy.findings import Finding, Level, written_at, written_path
from penstock.deploy.keys import names_at
from penstock.deploy.runfile import Reading, RunFile, RunFileError, read
from penstock.deploy.yaml_source import KeyPath, YamlSource
from penstock.learner.algorithms.judging import with_those_around
from penstock.services.settings import Section

RULES: tuple[Rule, ...] = (
    *numbers.RULES,
    *sampling.RULES,
    *scaling.RULES,
    *algorithm.RULES,
    *guards.RULES,
    *evidence.RULES,
    *tracking.RULES,
    *models.RULES,
    *inputs.RULES,
    *world.RULES,
    *cluster.RULES,
)


def check(path: Path | str, overrides: Sequence[str] = (), stage: Stage = "train") -> list[Finding]:
    """All findings together, mistakes of form first; empty when nothing is amiss. Starts nothing.

    Where the form of the file is wrong in places, the rules look at what is right.
    """
    return _findings(read(Path(path), overrides), Path(path), stage)


def _findings(reading: Reading, path: Path, stage: Stage) -> list[Finding]:
    findings = list(reading.findings)
    if not reading.source.values:
        return findings
    if reading.run_file is not None:
        run_file, broken = reading.run_file, frozenset[str]()
    else:
        run_file, broken = _salvage(reading.source, path.resolve().parent)
    unknown = unknown_keys(findings, reading.source, run_file, broken)
    context = Context(run_file, reading.source, stage, unknown)
    said = {finding.key for finding in findings}
    touched = {key.split(".")[0] for key in said}
    for rule in RULES:
        if stage in rule.stages and broken.isdisjoint(rule.needs):
            # A doubt about a section that has mistakes may be about a default that stands in for a mistake.
            doubtful = not touched.isdisjoint(rule.needs)
            # What stands at an unknown key is nothing that anybody wrote.
            found = [
                f for f in rule.check(context) if f.key not in said and unknown.isdisjoint(with_those_around(f.key))
            ]
            findings += [f for f in found if f.level == "error" or not doubtful]
    return sorted(findings, key=lambda finding: get_args(Level).index(finding.level))


def require(
    path: Path | str,
    overrides: Sequence[str] = (),
    stage: Stage = "train",
    reader: Callable[[Path, Sequence[str]], Reading] = read,
) -> tuple[RunFile, list[Finding]]:
    """The run file, ready to be run, and the warnings. Raises RunFileError with every finding if one is an error, and
    what `reader`, which reads it, raises."""
    reading = reader(Path(path), overrides)
    findings = _findings(reading, Path(path), stage)
    if reading.run_file is None or any(finding.level == "error" for finding in findings):
        raise RunFileError(str(path), findings)
    return reading.run_file, [finding for finding in findings if finding.level == "warning"]


def _salvage(source: YamlSource, base: Path) -> tuple[RunFile, frozenset[str]]:
    """What is right in a file with mistakes of form, and the sections that could not be had at all.

    Wrong keys are left out, so that their defaults stand in; a section that lacks a required key is broken.
    """
    values = copy.deepcopy(source.values)
    broken: set[str] = set()
    while True:
        try:
            return RunFile.at(base, values), frozenset(broken)
        except ValidationError as error:
            wrong = [written_path(detail, values) for detail in error.errors(include_url=False)]
        lacking = {str(path[0]) for path in wrong if not _remove(values, path)}
        broken |= lacking
        if ("algorithm", "name") in wrong:
            broken.add("algorithm")  # what a row fills in cannot be had without it
        for name in lacking:
            if name in values:
                del values[name]
            elif name in _STAND_INS:
                values[name] = _STAND_INS[name]


# Required sections that are broken or missing; no rule looks at them, because they count as broken.
_STAND_INS: dict[str, Any] = {
    "model": {"path": "/nowhere"},
    "data": {"sources": {"missing": {"path": "/nowhere"}}},
}


def _remove(values: Any, path: KeyPath) -> bool:
    """Take the value at `path` out; False when there is nothing to take out. Of a section with a kind the kind stays,
    unless it is all there is; where a cell of the algorithm lacks a key, the section around the key goes."""
    if not path:
        return False
    if isinstance(path[-1], int):
        # The whole list: without one of its entries the others would be told of by wrong numbers.
        return _remove(values, path[:-1])
    around = written_at(values, path[:-1]) if len(path) > 1 else values
    if not isinstance(around, dict) or path[-1] not in around:
        return path[0] == "algorithm" and len(path) > 2 and _remove(values, path[:-1])
    section = around[path[-1]]
    if isinstance(section, dict) and "kind" in section and len(section) > 1:
        around[path[-1]] = {"kind": section["kind"]}
    else:
        del around[path[-1]]
    return True


def unknown_keys(
    findings: Sequence[Finding], source: YamlSource, run_file: RunFile, broken: frozenset[str]
) -> frozenset[str]:
    """Keys that have no right value yet, by the mistakes of form in `findings`: the wrong ones, those that a wrong name
    was probably meant for, and what would have come with them. What `run_file` has there is a default."""
    unknown = set(broken - {"algorithm"})
    for finding in findings:
        unknown |= {finding.key, finding.nearest}
        section, _, rest = finding.key.partition(".")
        if section == "algorithm" and rest:
            unknown |= _unknown_in_cell(rest.split("."), source, run_file)
            unknown -= _told_all_the_same(finding.key, source)
    if "algorithm" in broken:
        named = any(finding.key == "algorithm.name" for finding in findings)
        unknown |= set(_not_written("algorithm", source)) if named else {"algorithm"}
    return frozenset(unknown)


def _unknown_in_cell(path: Sequence[str], source: YamlSource, run_file: RunFile) -> set[str]:
    """By a mistake at `path` below `algorithm`: for a key that the cell does not have everything that is not written,
    since nobody knows what was meant; for a rule of the whole cell that was broken everything but its kind."""
    cell = getattr(run_file.algorithm, path[0], None)
    if not isinstance(cell, Section):
        return set()
    key = f"algorithm.{path[0]}"
    if len(path) == 1:
        return {f"{key}.{name}" for name in type(cell).model_fields if name != "kind"}
    return set() if path[1] in type(cell).model_fields else set(_not_written(key, source))


def _told_all_the_same(key: str, source: YamlSource) -> set[str]:
    """The cell at `key` itself where a mapping stands there: a rule was broken, and its kind is known."""
    return {key} if isinstance(written_at(source.values, tuple(key.split("."))), dict) else set()


def _not_written(key: str, source: YamlSource) -> Iterator[str]:
    """Every key below `key` that the file says nothing at."""
    for name in names_at(RunFile, tuple(key.split("."))):
        below = f"{key}.{name}"
        written = written_at(source.values, tuple(below.split(".")))
        if isinstance(written, dict):
            yield from _not_written(below, source)
        elif written is None:
            yield below
