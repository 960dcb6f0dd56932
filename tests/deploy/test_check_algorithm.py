"""What `penstock check` says about the section `algorithm`: mistakes of form, contradictions, missing models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from check_parts import GOOD, check_overridden

from penstock.deploy import preflight
from penstock.deploy.runfile import load
from penstock.learner.algorithms import table

SINGLE = ("a2c", "reinforce", "rloo")
"""Rows without a ratio, which want one update per step."""


@pytest.mark.parametrize("name", sorted(table.rows()))
def test_every_row_passes_the_check_and_reads_back_from_config_yaml_as_itself(place: Path, name: str) -> None:
    updates = [] if name in SINGLE else ["learner.mini_batches=2"]
    overrides = [f"algorithm.name={name}", *updates]
    assert check_overridden(place, *overrides) == {}
    run = load(place / "run.yaml", overrides)
    config = place / "config.yaml"
    config.write_text(run.to_yaml())
    assert load(config) == run
    cells = table.find(name).cells()
    assert {key: getattr(run.algorithm, key) for key in cells} == cells


def test_single_cells_are_changed_in_the_file_and_on_the_command_line(place: Path) -> None:
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"algorithm": {"name": "dapo", "objective": {"clip_high": 0.3}}}))
    run = load(path, ["algorithm.trust={kind: masked_is, max_weight: 3}", "algorithm.objective.dual_clip=3"])
    assert (run.algorithm.objective.clip_low, run.algorithm.objective.clip_high) == (0.2, 0.3)
    assert run.algorithm.objective.dual_clip == 3
    assert (run.algorithm.trust.kind, run.algorithm.trust.min_weight, run.algorithm.trust.max_weight) == (
        "masked_is",
        0.5,
        3,
    )


@pytest.mark.parametrize(
    ("override", "key", "said"),
    [
        ("algorithm.name=dappo", "algorithm.name", "did you mean 'dapo'"),
        ("algorithm.objective.kind=cipso", "algorithm.objective.kind", "did you mean 'cispo'?"),
        ("algorithm.trust={max_weight: 2, kind: truncated}", "algorithm.trust.kind", "did you mean 'truncated_is'?"),
        ("algorithm.objective.clip_hihg=0.3", "algorithm.objective.clip_hihg", "algorithm.objective.clip_high?"),
        ("algorithm.objective.max_weight=3", "algorithm.objective.max_weight", "it belongs to kind 'cispo'"),
        ("algorithm.objective=ppo_clip", "algorithm.objective", "a mapping of keys to values"),
        ("algorithm.objectiv={kind: cispo}", "algorithm.objectiv", "did you mean algorithm.objective?"),
        ("algorithm.objective.clip_low=2", "algorithm.objective.clip_low", "allowed: 1 or less"),
        ("algorithm.reduction.kind=tokens_mean", "algorithm.reduction.kind", "did you mean 'token_mean'?"),
        ("algorithm.kl={coefficient: 0.1, estimator: k1}", "algorithm.kl", "use k2 or k3"),
        ("algorithm.kl.controller={kind: doubling}", "algorithm.kl.controller.target", "is required and missing"),
        ("algorithm.kl.controller={kind: doubling, target: 0.1}", "algorithm.kl", "and it is 0"),
        ("algorithm.credit={kind: vtrace, max_c: 2}", "algorithm.credit", "IMPALA requires"),
        ("algorithm.entropy_coefficient=-1", "algorithm.entropy_coefficient", "allowed: 0 or more"),
        ("algorithm.group_filter=none", "algorithm.group_filter", "'signal' or 'all'"),
        ("algorithm.value={kind: own}", "algorithm.value", "algorithm.value: {kind: none}"),
        ("algorithm.credit={kind: gae}", "algorithm.value", "needs a value model"),
        ("algorithm.quorum=1", "algorithm.quorum", "2 or more"),
    ],
)
def test_a_mistake_in_the_algorithm_is_said_with_its_key_and_the_remedy(
    place: Path, override: str, key: str, said: str
) -> None:
    found = check_overridden(place, override)
    assert key in found, f"found only {[str(f) for f in found.values()]}"
    assert found[key].level == "error"
    assert said in str(found[key])
    written = override.partition("=")[0]
    given = written.startswith(key) or key.startswith(written)
    assert found[key].where == ("command line" if given else str(place / "run.yaml"))


def test_a_misspelt_kind_stands_at_its_line_and_lists_all_kinds(place: Path) -> None:
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD) + "algorithm:\n  objective:\n    kind: gsop\n")
    line = path.read_text().splitlines().index("    kind: gsop") + 1
    (finding,) = preflight.check(path)
    assert str(finding) == (
        f"{path}:{line}: error: algorithm.objective.kind: is not one of the choices; found 'gsop'; allowed: "
        "'policy_gradient', 'ppo_clip', 'ppo_kl', 'gspo', 'cispo', 'mirror_descent'; did you mean 'gspo'?"
    )


def test_a_misspelt_name_hides_no_other_mistake_and_makes_up_none(place: Path) -> None:
    # Whether an objective has τ depends on the row; how large a quorum may be does not.
    changes = ["algorithm.name=rlooo", "algorithm.objective.tau=1", "algorithm.quorum=0"]
    assert set(check_overridden(place, *changes, "rollout.group_size=1")) == {"algorithm.name", "algorithm.quorum"}


def test_all_contradictions_are_reported_together(place: Path) -> None:
    changes = ["algorithm.name=rloo", "algorithm.trust.kind=none", "algorithm.credit={kind: gae}"]
    found = check_overridden(place, *changes, "rollout.group_size=1", "algorithm.reject={kind: second_moment}")
    assert set(found) == {"rollout.group_size", "algorithm.baseline", "algorithm.value", "algorithm.trust"}


def test_the_folder_of_a_value_model_is_looked_for(place: Path) -> None:
    good = ["algorithm.name=ppo", "learner.mini_batches=2"]
    assert check_overridden(place, *good, "algorithm.value.path=./model") == {}
    found = check_overridden(place, *good, "algorithm.value.path=./modle")
    assert "did you mean" in str(found["algorithm.value.path"])
    run = load(place / "run.yaml", [*good, "algorithm.value.path=./model"])
    assert run.algorithm.value.path == str(place / "model")


def test_a_value_model_must_know_the_policys_tokens(place: Path) -> None:
    shutil.copytree(place / "model", place / "small")
    config = json.loads((place / "small" / "config.json").read_text())
    (place / "small" / "config.json").write_text(json.dumps(config | {"vocab_size": 3}))
    found = check_overridden(place, "algorithm.name=ppo", "learner.mini_batches=2", "algorithm.value.path=./small")
    assert "this model knows 3 tokens and the policy" in found["algorithm.value.path"].problem


@pytest.mark.parametrize(
    ("name", "key"),
    [("kimi", "algorithm.objective"), ("ppo_kl", "algorithm.objective"), ("decoupled_ppo", "algorithm.trust")],
)
def test_a_single_update_that_takes_the_point_of_a_row_away_is_a_warning(place: Path, name: str, key: str) -> None:
    found = check_overridden(place, f"algorithm.name={name}")
    assert {key: found[key].level} == {each: finding.level for each, finding in found.items()} == {key: "warning"}
    assert "with one update per step" in found[key].problem


def test_clip_bounds_that_someone_wrote_and_nothing_uses_are_a_warning(place: Path) -> None:
    assert check_overridden(place, "algorithm.name=dapo") == {}
    found = check_overridden(place, "algorithm.objective.clip_high=0.3")
    assert found["algorithm.objective.clip_high"].level == "warning"
    assert check_overridden(place, "algorithm.objective.clip_high=0.3", "learner.epochs=2") == {}
