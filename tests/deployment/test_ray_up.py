"""Cluster files for `ray up`: by Ray's own schema and preparation, and against the run file that the docs show."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from penstock.deploy.runfile import RunFile
from scripts.manifests.agreements import ROOT, demands

FILES = sorted((ROOT / "deploy" / "ray-up").glob("*.yaml"))
CLOUDS = [path for path in FILES if path.stem != "on-premise"]


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def named(path: Path) -> str:
    return path.stem


def run_file() -> RunFile:
    """The run file of docs/deploy-ray-up.md: its cluster's part, on a model and data that do not matter here."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "deploy-ray-up.md").read_text(), re.DOTALL)
    rest = {"model": {"path": "/m"}, "data": {"sources": {"d": {"path": "/d.jsonl"}}}}
    return RunFile.model_validate(rest | yaml.safe_load(block))


def test_there_is_a_file_for_each_place_that_the_docs_name() -> None:
    said = set(re.findall(r"deploy/ray-up/([\w-]+)\.yaml", (ROOT / "docs" / "deploy-ray-up.md").read_text()))
    assert said == {path.stem for path in FILES} == {"aws", "gcp", "on-premise"}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_ray_takes_the_file(path: Path) -> None:
    prepared = prepare_config(read(path))
    validate_config(prepared)
    assert prepared["provider"]["type"] == ("local" if path.stem == "on-premise" else path.stem)


def test_ray_refuses_a_key_that_it_does_not_know() -> None:
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config(prepare_config(read(FILES[0]) | {"idle_timeout_minuts": 5}))


@pytest.mark.parametrize("path", CLOUDS, ids=named)
def test_every_role_of_the_run_file_has_one_kind_of_node_that_fits(path: Path) -> None:
    run, kinds = run_file(), prepare_config(read(path))["available_node_types"]
    homes = {}
    for role, asked in demands(run).items():
        homes[role] = [
            name
            for name, kind in kinds.items()
            if all(kind["resources"].get(what, 0) >= amount for what, amount in asked.items())
        ]
    assert homes == {"learner": ["learner"], "rollout": ["rollout"], "scorer": ["head"]}
    assert run.rollout.max_workers == kinds["rollout"]["max_workers"]
    assert run.placement.grows and kinds["rollout"]["min_workers"] == 0


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_node_joins_with_the_token_and_what_head_and_workers_do_is_shell(path: Path) -> None:
    cluster = read(path)
    starts = [
        line for kind in ("head", "worker") for line in cluster[f"{kind}_start_ray_commands"] if "ray start" in line
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    commands = [line for key, lines in cluster.items() if key.endswith("_commands") for line in lines]
    for command in commands:
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_packages_are_pinned_and_penstock_comes_by_its_own_script(path: Path) -> None:
    cluster = read(path)
    assert any("scripts/setup_env.py --venv ~/venv" in line for line in cluster["setup_commands"])
    installed = [line for line in cluster.get("head_setup_commands", ()) if "pip install" in line]
    assert all(re.search(r"==\d+\.\d+\.\d+", line) for line in installed)
