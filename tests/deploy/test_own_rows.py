"""An algorithm of the user's own, as docs/algorithms.md shows it: from the run file to the loss and the actors."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from check_parts import GOOD

from penstock.deploy import preflight
from penstock.deploy.findings import Finding
from penstock.deploy.runfile import RunFileError, changed_on_resume, load
from penstock.learner.algorithms.bound import bind
from penstock.learner.algorithms.composition import compose

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"


def shown_code() -> str:
    """The module that the page shows."""
    (code,) = re.findall(r"```python\n(# my_rows\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    return str(code)


@pytest.fixture
def own(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a run file and my_rows.py beside it; what is imported from there is forgotten again."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it is written anew within a second
    (place / "my_rows.py").write_text(shown_code())
    yield place
    sys.modules.pop("my_rows", None)


def run_file(folder: Path, **algorithm: Any) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"algorithm": {"name": "my_rows:SOFT", **algorithm}}, sort_keys=False))
    return path


def findings(path: Path, *overrides: str) -> dict[str, Finding]:
    return {finding.key: finding for finding in preflight.check(path, overrides)}


def test_the_example_is_fifteen_lines_and_passes_the_check(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len([line for line in shown_code().splitlines() if line]) <= 15
    monkeypatch.chdir("/")  # the module stands beside the run file, wherever the command is given
    assert findings(run_file(own)) == {}


def test_the_function_of_an_own_cell_makes_the_loss(own: Path) -> None:
    section = load(run_file(own, objective={"width": 0.5})).algorithm
    algorithm = bind(section)
    logp = torch.tensor([[0.5, 0.0, math.nan]], dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(1, 3, dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    weights = algorithm.reduction(torch.tensor([2]), torch.tensor([0]))
    made = compose(algorithm, logp, zeros, zeros, None, zeros + 2.0, mask, weights)
    made.loss.backward()
    # Token 1: r = e^½, −(1 + ½ tanh((r − 1)/½))·2; token 2: r = 1, −2; their mean. The slope of token 1 is
    # −2 r sech²((r − 1)/½), that of token 2 is −2, each over 2 tokens.
    r = math.exp(0.5)
    assert made.loss.item() == pytest.approx((-2 * (1 + 0.5 * math.tanh((r - 1) / 0.5)) - 2) / 2, rel=1e-12)
    slope = -2 * r / math.cosh((r - 1) / 0.5) ** 2 / 2
    assert logp.grad is not None
    assert logp.grad[0].tolist() == pytest.approx([slope, -1.0, 0.0], rel=1e-12)


def test_an_own_cell_reads_back_from_config_yaml_and_its_changes_are_seen_at_a_resume(own: Path) -> None:
    run = load(run_file(own, objective={"width": 0.5}))
    config = own / "config.yaml"
    config.write_text(run.to_yaml())
    again = load(config)
    assert again == run
    assert again.algorithm.objective.width == 0.5
    assert again.algorithm.folder == str(own)
    assert changed_on_resume(run, load(config, ["algorithm.objective.width=0.6"])) == ["algorithm.objective.width"]


def test_an_own_cell_is_changed_on_the_command_line(own: Path) -> None:
    path = run_file(own)
    assert load(path, ["algorithm.objective.width=0.7"]).algorithm.objective.width == 0.7
    replaced = load(path, ["algorithm.objective={kind: cispo}", "algorithm.trust.kind=none"]).algorithm
    assert replaced.objective.kind == "cispo"


@pytest.mark.parametrize(
    ("override", "key", "said"),
    [
        ("algorithm.objective.widht=1", "algorithm.objective.widht", "there is no such key"),
        ("algorithm.objective.width=wide", "algorithm.objective.width", "allowed: a number"),
        ("algorithm.name=my_rows:SOFTER", "algorithm.name", "did you mean 'SOFT'"),
        ("algorithm.name=my_row:SOFT", "algorithm.name", "did you mean 'my_rows'"),
        ("algorithm.name=my_rows:SoftClip", "algorithm.name", "is no Algorithm"),
        ("rollout.group_size=1", "rollout.group_size", "has no other"),
        ("algorithm.value={kind: own}", "algorithm.value", "trained for nothing"),
    ],
)
def test_mistakes_around_an_own_row_are_found_by_check(own: Path, override: str, key: str, said: str) -> None:
    found = findings(run_file(own), override)
    assert key in found, f"found only {[str(f) for f in found.values()]}"
    assert found[key].level == "error"
    assert said in str(found[key])


@pytest.mark.parametrize(
    ("override", "allowed", "nearest"),
    [
        ("algorithm.objective.widht=1", "kind, width", "algorithm.objective.width"),
        ("algorithm.objective.tau=1", "kind, width", ""),
        ("algorithm.objective.clip_hihg=1", "kind, width", ""),
    ],
)
def test_a_misspelt_key_of_an_own_cell_is_told_with_that_cells_own_keys(
    own: Path, override: str, allowed: str, nearest: str
) -> None:
    (found,) = preflight.check(run_file(own), [override])
    assert (found.key, found.allowed, found.nearest) == (override.partition("=")[0], allowed, nearest)
    assert "belongs to kind" not in str(found)


def test_other_mistakes_in_an_own_cell_are_told_as_pydantic_found_them(own: Path) -> None:
    text = shown_code().replace("import torch\n", "import torch\nfrom pydantic import Field, field_validator\n")
    text = text.replace(
        "    width: float = 0.3\n",
        "    width: float = Field(0.3, gt=0)\n    even: int = 2\n\n    @field_validator('even')\n"
        "    def check(cls, value):\n"
        "        if value % 2:\n            raise ValueError('is odd')\n        return value\n",
    ).replace("mask, width):", "mask, width, even):")
    (own / "my_rows.py").write_text(text)
    found = findings(run_file(own), "algorithm.objective={width: 0, even: 3, widht: 2}")
    assert found["algorithm.objective.width"].allowed == "more than 0"
    assert (found["algorithm.objective.even"].problem, found["algorithm.objective.even"].found) == ("is odd", "3")
    assert found["algorithm.objective.widht"].nearest == "algorithm.objective.width"


def test_a_row_with_a_cell_in_the_wrong_place_is_refused(own: Path) -> None:
    with (own / "my_rows.py").open("a") as module:
        module.write("import dataclasses\nODD = dataclasses.replace(SOFT, objective=GroupMean())\n")
    found = findings(run_file(own, name="my_rows:ODD"))
    assert "the row has GroupMean here, which is no ObjectiveCell" in str(found["algorithm.objective"])


def test_a_cell_whose_function_is_not_there_is_found_by_check(own: Path) -> None:
    text = shown_code().replace('function = "my_rows:soft_clip"', 'function = "my_rows:soft_clib"')
    (own / "my_rows.py").write_text(text)
    said = str(findings(run_file(own))["algorithm.objective"])
    assert "my_rows has no 'soft_clib'" in said
    assert "did you mean 'soft_clip'" in said


def test_a_function_that_takes_no_such_coefficient_is_found_by_check(own: Path) -> None:
    text = shown_code().replace("    width: float = 0.3", "    breadth: float = 0.3")
    (own / "my_rows.py").write_text(text)
    assert "breadth" in str(findings(run_file(own))["algorithm.objective"])


def test_what_an_own_cell_says_of_itself_is_checked_like_penstocks(own: Path) -> None:
    text = shown_code().replace("    width: float = 0.3", '    ratio = "sampler"\n    width: float = 0.3')
    (own / "my_rows.py").write_text(text)
    assert "would multiply it twice" in str(findings(run_file(own))["algorithm.trust"])


@pytest.mark.engine
def test_the_processes_of_the_learner_can_import_the_row(own: Path, tmp_path: Path) -> None:
    import ray

    from penstock.deploy import plans
    from penstock.deploy.cluster import Cluster, actor_environment
    from penstock.deploy.learners import start_rank
    from penstock.services.rundir import RunDir

    run = load(run_file(own, objective={"width": 0.5}))
    plan = plans.learner_plan(run, RunDir.create(tmp_path, "own", run.to_yaml()), None)
    cluster = Cluster(None, "own-rows", actors=1)
    try:
        environment = {"env_vars": actor_environment(threads=1, device="cpu")}
        options = {"num_cpus": 1, "runtime_env": environment}
        rank = start_rank("learner-1", tmp_path / "log", options, run.algorithm.folder, None, 0)
        # The plan names a class of my_rows: unpacking it is what needs the module.
        assert ray.get(rank.prepare.remote(1, plan, "", None, None, None), timeout=120) is None
    finally:
        cluster.close()


def test_without_its_module_a_run_file_is_refused_before_anything_starts(own: Path) -> None:
    path = run_file(own)
    (own / "my_rows.py").unlink()
    with pytest.raises(RunFileError, match="there is no module 'my_rows'"):
        load(path)
