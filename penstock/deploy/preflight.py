"""`penstock check`: everything that can be known to be wrong with a run file before anything starts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from penstock.deploy.checks import algorithm, evidence, numbers, sampling, world
from penstock.deploy.checks.context import Context, Rule, Stage
from penstock.deploy.findings import Finding, Level, written_path
from penstock.deploy.runfile import RunFile, RunFileError, read
from penstock.deploy.yaml_source import YamlSource

RULES: tuple[Rule, ...] = (*numbers.RULES, *sampling.RULES, *algorithm.RULES, *evidence.RULES, *world.RULES)


def check(path: Path | str, overrides: Sequence[str] = (), stage: Stage = "train") -> list[Finding]:
    """All findings together, mistakes of form first; empty when nothing is amiss. Starts nothing.

    Where the form of the file is wrong in places, the rules look at what is right.
    """
    path = Path(path)
    reading = read(path, overrides)
    findings = list(reading.findings)
    if not reading.source.values:
        return findings
    if reading.run_file is not None:
        run_file, broken = reading.run_file, frozenset[str]()
    else:
        run_file, broken = _salvage(reading.source, path.resolve().parent)
    context = Context(run_file, reading.source, stage)
    said = {finding.key for finding in findings}
    touched = {key.split(".")[0] for key in said}
    for rule in RULES:
        if stage in rule.stages and broken.isdisjoint(rule.needs):
            # A doubt about a section that has mistakes may be about a default that stands in for a mistake.
            doubtful = not touched.isdisjoint(rule.needs)
            found = [f for f in rule.check(context) if f.key not in said]
            findings += [f for f in found if f.level == "error" or not doubtful]
    return sorted(findings, key=lambda finding: get_args(Level).index(finding.level))


def require(path: Path | str, overrides: Sequence[str] = (), stage: Stage = "train") -> tuple[RunFile, list[Finding]]:
    """The run file, ready to be run, and the warnings. Raises RunFileError with every finding if one is an error."""
    findings = check(path, overrides, stage)
    reading = read(Path(path), overrides)
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
            else:
                values[name] = _STAND_INS[name]


# Required sections that are broken or missing; no rule looks at them, because they count as broken.
_STAND_INS: dict[str, Any] = {
    "model": {"path": "/nowhere"},
    "data": {"sources": {"missing": {"path": "/nowhere"}}},
}


def _remove(values: Any, path: Sequence[str | int]) -> bool:
    """Take the value at `path` out; False when there is nothing to take out."""
    here = values
    for key in path[:-1]:
        here = here[key]
    if not path or not (path[-1] in here if isinstance(here, dict) else isinstance(here, list)):
        return False
    del here[path[-1]]
    return True
