"""The Dockerfile without Docker: what hadolint says, what it copies, as whom it runs, and how its health is told."""

from __future__ import annotations

import fnmatch
import io
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser
from views import view

from deploy.docker.health import PATIENCE, healthy
from penstock.services.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "docker"
VENV = Path(sys.executable).parent
FINAL = ("cpu", "cuda")


@pytest.fixture(scope="module")
def stages() -> dict[str, list[dict[str, Any]]]:
    """Instructions by the name of their stage."""
    parser = DockerfileParser(fileobj=io.BytesIO((FOLDER / "Dockerfile").read_bytes()))
    found: dict[str, list[dict[str, Any]]] = {}
    name = ""
    for instruction in parser.structure:
        if instruction["instruction"] == "FROM":
            name = instruction["value"].split(" AS ")[1]
            found[name] = []
        if name and instruction["instruction"] != "COMMENT":
            found[name].append(instruction)
    return found


def chain(stages: dict[str, list[dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    """The instructions that an image is made of, those of the stages it is built upon included."""
    base = stages[name][0]["value"].split(" AS ")[0]
    return [*(chain(stages, base) if base in stages else ()), *stages[name]]


def last(stages: dict[str, list[dict[str, Any]]], name: str, instruction: str) -> str:
    values = [one["value"] for one in chain(stages, name) if one["instruction"] == instruction]
    return str(values[-1])


def test_hadolint_finds_nothing() -> None:
    command = [VENV / "hadolint", "--config", FOLDER / "hadolint.yaml", FOLDER / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_base_is_a_stage_or_the_one_pinned_image(stages: dict[str, list[dict[str, Any]]]) -> None:
    text = (FOLDER / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG PYTHON=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"docker\.io/library/python:\d+\.\d+\.\d+-slim-\w+", base)
    supported = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert supported == ">=3.11,<3.14" and base.split(":")[1].startswith(("3.11.", "3.12.", "3.13."))
    assert {stage[0]["value"].split(" AS ")[0] for stage in stages.values()} - set(stages) == {"${PYTHON}"}


@pytest.mark.parametrize("image", FINAL)
def test_an_image_runs_as_a_plain_user_with_penstock_as_its_command(stages: Any, image: str) -> None:
    assert last(stages, image, "USER") == "1000:1000"
    assert json.loads(last(stages, image, "ENTRYPOINT")) == ["/usr/bin/tini", "--", "penstock"]
    assert "health.py" in last(stages, image, "HEALTHCHECK")
    copied = [one["value"] for one in chain(stages, image) if one["instruction"] == "COPY"]
    assert f"--from=installed-{image} /opt/venv /opt/venv" in copied
    installs = [one["value"] for one in chain(stages, image) if "apt-get install" in one["value"]]
    assert installs and all("rm -rf /var/lib/apt/lists" in line for line in installs)


@pytest.mark.parametrize("image", FINAL)
def test_packages_come_by_the_script_of_make_setup_with_its_constraints(stages: Any, image: str) -> None:
    made = chain(stages, f"installed-{image}")
    assert made[-1]["value"] == f"python scripts/setup_env.py --venv /opt/venv --device {image}"
    copied = " ".join(one["value"] for one in made if one["instruction"] == "COPY")
    wanted = ("pyproject.toml", "constraints-cpu.txt", "constraints-cuda.txt", "scripts/setup_env.py", "README.md")
    assert all(name in copied for name in wanted)


def test_what_is_copied_is_there_and_in_the_build_context(stages: Any) -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "everything is left out but what is named"
    let_in = [line[1:] for line in lines if line.startswith("!")]
    for stage in stages.values():
        for one in stage:
            if one["instruction"] != "COPY" or one["value"].startswith("--from"):
                continue
            for source in one["value"].split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(fnmatch.fnmatch(source, pattern) for pattern in let_in), source
    assert not any(fnmatch.fnmatch(name, pattern) for name in ("runs", ".git", "tests") for pattern in let_in)


def test_tags_of_the_manifests_are_those_that_the_dockerfile_names() -> None:
    built = set(re.findall(r"-t penstock:(\S+)", (FOLDER / "Dockerfile").read_text()))
    kustomized = "".join(path.read_text() for path in (ROOT / "deploy" / "kubernetes").rglob("kustomization.yaml"))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert built == {f"{version}-cpu", f"{version}-cuda"}
    assert set(re.findall(r"penstock, newTag: (\S+?)}", kustomized)) == built


# --- health ---------------------------------------------------------------------------------------


def test_no_run_is_no_illness(tmp_path: Path) -> None:
    assert healthy(tmp_path)[0]


@pytest.mark.parametrize(
    ("phase", "locked", "age", "well"),
    [
        ("training", True, 0.0, True),
        ("training", True, PATIENCE + 10, False),
        ("training", False, 0.0, False),
        ("finished", False, 1e6, True),
        ("failed", False, 1e6, True),
    ],
    ids=["running", "silent", "dead", "ended", "failed"],
)
def test_a_run_is_well_while_its_driver_speaks_and_when_it_has_ended(
    tmp_path: Path, phase: str, locked: bool, age: float, well: bool
) -> None:
    run = RunDir.create(tmp_path, "sort", "name: sort\n")
    run.write_status(view(phase=phase))
    os.utime(run.status, (time.time() - age, time.time() - age))
    if locked:
        run.lock()
    try:
        assert healthy(tmp_path)[0] is well
    finally:
        run.unlock()
