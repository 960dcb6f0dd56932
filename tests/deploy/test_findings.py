"""How mistakes are worded: values as in YAML, what was found, what was probably meant."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from check_parts import check_overridden
from typer.testing import CliRunner

from penstock.cli.main import app
from penstock.deploy.keys import ELSEWHERE, all_keys, type_at
from penstock.deploy.runfile import RunFile, load, read, schema
from penstock.deploy.shown import shown
from penstock.deploy.yaml_source import parse_value
from penstock.services.settings import FORMS


@pytest.mark.parametrize(
    "value",
    [True, False, None, 3, 0.5, 1e-06, math.inf, "text", "true", {"kind": "cispo", "clip": None}, [1, [False, "a"]]],
)
def test_a_value_is_shown_as_yaml_reads_it_back(value: object) -> None:
    assert parse_value(shown({"value": value})) == {"value": value}


def test_what_is_shown_is_short_and_has_no_secrets() -> None:
    assert shown("x" * 200).endswith("…") and len(shown("x" * 200)) < 81
    assert shown({"api_key": "hunter2", "url": "redis://me:hunter2@host/0"}) == (
        "{api_key: '***', url: 'redis://me:***@host/0'}"
    )
    assert shown("hunter2", "password") == "'***'"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("algorithm=dapo", "algorithm: {name: dapo}"),
        ("algorithm.objective=ppo_clip", "algorithm.objective: {kind: ppo_clip}"),
        ("algorithm.objective=ppo_clp", "algorithm.objective: {kind: ppo_clip}"),
        ("algorithm.trust=none", "algorithm.trust: {kind: none}"),
        ("algorithm.value=null", "algorithm.value: {kind: none}"),
        ("algorithm.reject=false", "algorithm.reject: {kind: none}"),
        ("algorithm.whitening=sequences", "algorithm.whitening: {over: sequences}"),
        ("algorithm.reduction=token_mean", "algorithm.reduction: {kind: token_mean}"),
        ("algorithm.kl.controller=fixed", "algorithm.kl.controller: {kind: fixed}"),
        ("algorithm.kl=0.1", "algorithm.kl: {coefficient: 0.1}"),
        ("learner.schedule=cosine", "learner.schedule: {kind: cosine}"),
        ("model=model", "model: {path: model}"),
        ("data.sources.train=train.jsonl", "data.sources.train: {path: train.jsonl}"),
        ("limits=50", "limits: {steps: 50}"),
        ("limits=true", ""),
        ("algorithm.objective=3", ""),
    ],
)
def test_a_plain_value_in_place_of_a_section_is_told_how_it_was_meant(place: Path, override: str, meant: str) -> None:
    found = check_overridden(place, override)[override.partition("=")[0]]
    assert found.allowed == "a mapping of keys to values"
    assert found.nearest == meant


@pytest.mark.parametrize(
    ("override", "key", "found"),
    [
        ("rollout.keep_routing=true", "rollout.keep_routing", "true"),
        ("engine.enforce_eager=3", "engine.enforce_eager", "3"),
        ("engine.dtype=null", "engine.dtype", "null"),
        ("algorithm.objective.kind=null", "algorithm.objective.kind", "null"),
        ("reward=null", "reward", "null"),
        ("learner.mini_batches=64", "learner.mini_batches", "64"),
        ("algorithm.credit={kind: vtrace, max_c: 2}", "algorithm.credit", "{kind: 'vtrace', max_c: 2}"),
        ("algorithm.credit={kind: gae}", "algorithm.value", "{kind: 'none'} (the default)"),
        ("learner.epochs=1", "", ""),
        ("algorithm.quorum=1", "algorithm.quorum", "1"),
        ("learner.ranks=300", "learner.ranks", "300"),
        ("checkpoints.every=60", "checkpoints.every", "60"),
        ("limits.steps=10", "checkpoints.every", "20 (the default)"),
    ],
)
def test_what_was_found_is_told_in_the_words_of_yaml(place: Path, override: str, key: str, found: str) -> None:
    findings = check_overridden(place, override)
    assert (findings[key].found if key else "") == found
    assert not any(word in str(each) for each in findings.values() for word in ("None", "True", "False"))


def test_what_was_found_is_told_once(place: Path) -> None:
    (found,) = check_overridden(place, "learner.betas=[0.9, 1.0]").values()
    assert str(found) == "command line: error: learner.betas: betas lie in [0, 1); found [0.9, 1.0]"


NUMBERS = [
    key
    for key in all_keys(RunFile)
    if re.search(r"\b(int|float)\b", str(type_at(RunFile, key.split(".")))) and "betas" not in key
]
NUMBERS = [key for key in NUMBERS if key.rpartition(".")[0] not in NUMBERS]
"""A number in whose place a section may stand (`staleness.max_lag`) is tried as a number."""


def test_every_number_of_a_run_file_refuses_a_boolean_and_is_told_once(tmp_path: Path) -> None:
    assert len(NUMBERS) > 90 and {"learner.groups_per_step", "limits.minutes", "algorithm.kl.coefficient"} <= {*NUMBERS}
    minimal = tmp_path / "run.yaml"
    minimal.write_text("model: {path: m}\ndata: {sources: {train: {path: t.jsonl}}}\n")
    found = read(minimal, [f"{key}=true" for key in NUMBERS if "algorithm." not in key]).findings
    said = {each.key: (each.found, each.allowed) for each in found if each.found == "true"}
    assert sorted(said) == sorted({key for key in NUMBERS if "algorithm." not in key})
    assert len(said) == sum(each.found == "true" for each in found)
    assert said["learner.groups_per_step"] == ("true", "a whole number")
    assert said["learner.learning_rate"] == ("true", "a number")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("learner.betas=[0.9, true]", "learner.betas.1"),
        ("data.sources.train.weight=true", "data.sources.train.weight"),
        ("algorithm.kl.coefficient=false", "algorithm.kl.coefficient"),
        ("algorithm.objective.clip_low=true", "algorithm.objective.clip_low"),
        ("algorithm.trust={kind: masked_is, max_weight: true}", "algorithm.trust.max_weight"),
    ],
)
def test_a_boolean_for_a_number_is_found_inside_of_lists_and_cells(place: Path, override: str, key: str) -> None:
    (found,) = check_overridden(place, override).values()
    written = "false" if "false" in override else "true"
    assert (found.key, found.problem, found.found, found.allowed) == (
        key,
        "has a value that does not fit",
        written,
        "a number",
    )


def test_numbers_may_still_be_written_in_every_other_way(place: Path) -> None:
    ways = ["learner.learning_rate=1e-6", "learner.betas=['0.9', 0]", "limits.steps=20.0", "limits.minutes=3"]
    learner, limits = (getattr(load(place / "run.yaml", ways), name) for name in ("learner", "limits"))
    assert (learner.learning_rate, learner.betas, limits.steps, limits.minutes) == (1e-6, (0.9, 0.0), 20, 3.0)


def test_no_words_of_pydantics_are_shown_for_a_path(place: Path) -> None:
    assert check_overridden(place, "weights.folder=3")["weights.folder"].allowed == "text"


@pytest.mark.parametrize(("more", "said"), [([], "1 warning"), (["engine.dtype=bfloat16"], "2 warnings")])
def test_warnings_are_counted_in_words_that_fit(place: Path, more: list[str], said: str) -> None:
    check_overridden(place)
    result = CliRunner().invoke(app, ["check", str(place / "run.yaml"), "checkpoints.every=60", *more])
    assert result.stdout.splitlines()[-1] == f"{place / 'run.yaml'}: nothing amiss, {said}"


def test_a_boolean_is_found_in_a_section_that_stands_for_a_number(place: Path) -> None:
    (found,) = check_overridden(place, "staleness.max_lag={min: true, max: 4}").values()
    assert (found.key, found.found, found.allowed) == ("staleness.max_lag.min", "true", "a whole number")


def test_every_pattern_of_a_run_file_has_words(place: Path) -> None:
    patterns = set(re.findall(r'"pattern": "((?:[^"\\\\]|\\\\.)*)"', json.dumps(schema())))
    assert len(patterns) >= 5
    assert {json.loads(f'"{pattern}"') for pattern in patterns} <= set(FORMS)


def test_names_of_other_libraries_lead_to_keys_that_there_are() -> None:
    assert set(ELSEWHERE.values()) <= {*all_keys(RunFile)} | {"rollout.sampling.max_tokens"}
    assert not set(ELSEWHERE) & {key.rpartition(".")[2] for key in all_keys(RunFile)} - {"batch_size"}


def test_a_refused_password_is_told_at_the_key_that_names_its_variable(
    place: Path, monkeypatch, tmp_path: Path
) -> None:
    from penstock.services.store.server import PrivateServer

    with PrivateServer(tmp_path / "store", tmp_path / "store.log", host="127.0.0.1") as server:
        for password, state in (("guess", "is set here"), (None, "is not set here")):
            monkeypatch.delenv("PENSTOCK_STORE_PASSWORD", raising=False)
            if password is not None:
                monkeypatch.setenv("PENSTOCK_STORE_PASSWORD", password)
            (found,) = check_overridden(place, f"store.url={server.url}").values()
            assert (found.key, found.level) == ("store.password_env", "error")
            assert "refuses the connection" in found.problem and "guess" not in str(found)
            assert found.remedy == f"PENSTOCK_STORE_PASSWORD {state}"


def test_keys_are_names_whatever_they_look_like(place: Path) -> None:
    run = load(
        place / "run.yaml", ["reward.rules={1: {rule: exact}, true: {rule: contains}}", "data.template_args={2: x}"]
    )
    assert (set(run.reward.rules), run.data.template_args) == ({"1", "true"}, {"2": "x"})


def test_a_date_is_a_word(place: Path) -> None:
    assert load(place / "run.yaml", ["name=2026-11-26"]).name == "2026-11-26"
