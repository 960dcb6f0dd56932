"""constraints-cuda.txt, which no machine here installs, against what the project asks for."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.setup_env import tools_only

ROOT = Path(__file__).resolve().parents[2]


def test_every_package_that_is_asked_for_is_pinned_to_a_version_that_fits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints-cuda.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in pinned}
    for line in (*project["dependencies"], *project["optional-dependencies"]["cuda"]):
        wanted = Requirement(line)
        found = versions.get(canonicalize_name(wanted.name))
        assert found is not None, f"{wanted.name} is not there: make constraints-cuda"
        assert wanted.specifier.contains(found, prereleases=True), f"{line} against {found}: make constraints-cuda"


def test_tools_are_pinned_on_machines_with_a_gpu_too_and_nothing_is_pinned_twice() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tested, chosen = ((ROOT / f"constraints-{device}.txt").read_text() for device in ("cpu", "cuda"))
    both = [
        Requirement(line) for line in (chosen + tools_only(tested, chosen)).splitlines() if not line.startswith("#")
    ]
    names = [canonicalize_name(one.name) for one in both]
    assert len(set(names)) == len(names)
    for line in project["optional-dependencies"]["dev"]:
        wanted = Requirement(line)
        found = str(both[names.index(canonicalize_name(wanted.name))].specifier).removeprefix("==")
        assert wanted.specifier.contains(found), line
