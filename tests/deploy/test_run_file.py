"""The run file: values, overrides, mistakes, secrets, resuming, schema."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from penstock.deploy.findings import Finding
from penstock.deploy.runfile import RunFile, RunFileError, changed_on_resume, load, read, read_for_resume, schema
from penstock.deploy.shown import masked

MINIMAL = """\
name: sort
model:
  path: models/small
data:
  sources:
    train:
      path: data/train.jsonl
reward:
  rules:
    exact: {}
"""


def _file(folder: Path, text: str = MINIMAL, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def _findings(path: Path, *overrides: str) -> dict[str, Finding]:
    with pytest.raises(RunFileError) as caught:
        load(path, overrides)
    return {finding.key: finding for finding in caught.value.findings}


def test_paths_are_relative_to_the_run_file_and_runs_to_where_one_stands(tmp_path: Path) -> None:
    for folder in ("models/small", "data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/train.jsonl").touch()
    run = load(_file(tmp_path, MINIMAL + "weights: {folder: fast}\n"))
    assert run.model.path == str(tmp_path / "models/small")
    assert run.data.sources["train"].path == str(tmp_path / "data/train.jsonl")
    assert run.weights.folder == tmp_path / "fast"
    assert run.runs_dir == str(Path.cwd() / "runs")


def test_an_override_wins_over_the_file_and_is_read_as_yaml(tmp_path: Path) -> None:
    path = _file(tmp_path, MINIMAL + "goals:\n  - {metric: reward/mean, at_least: 0.5}\n")
    run = load(
        path,
        [
            "learner.learning_rate=1e-5",
            "limits.steps=12",
            "engine.enforce_eager=true",
            "learner.betas=[0.9, 0.95]",
            "goals.0.at_least=0.25",
            "data.sources.train.weight=2",
            "data.template_args.enable_thinking=false",
            "data.sources.extra={path: more.jsonl}",
            "name=other",
        ],
    )
    assert run.learner.learning_rate == 1e-5
    assert run.limits.steps == 12
    assert run.engine.enforce_eager is True
    assert run.learner.betas == (0.9, 0.95)
    assert run.goals[0].at_least == 0.25
    assert run.data.sources["train"].weight == 2
    assert run.data.template_args == {"enable_thinking": False}
    assert set(run.data.sources) == {"train", "extra"}
    assert run.name == "other"


def test_an_override_appends_to_a_list_and_null_clears_a_key(tmp_path: Path) -> None:
    path = _file(tmp_path, MINIMAL + "limits: {steps: 5}\ngoals: []\n")
    run = load(path, ["goals.0={metric: reward/mean, at_most: 1}", "limits.steps=null"])
    assert run.goals[0].at_most == 1
    assert run.limits.steps is None


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("learner.learning_rat=1", "learner.learning_rate"),
        ("learnr.learning_rate=1", "learner.learning_rate"),
        ("learning_rate=1", "learner.learning_rate"),
        ("data.sources.train.wieght=1", "data.sources.train.weight"),
        ("rollout.sampling.temprature=1", "rollout.sampling.temperature"),
        ("max_lag=1", "staleness.max_lag"),
        ("learner.schedule.warmup=1", "learner.schedule.warmup_updates"),
        ("checkpoints.keep=1", "checkpoints.keep_last"),
        ("engine.max=1", "engine.max_model_len"),
        ("rollout.temprature=1", "rollout.sampling.temperature"),
        ("rollout.max_token=1", "rollout.sampling.max_tokens"),
        ("LIMITS.STEPS=1", "limits.steps"),
        ("data.sources.train.Weight=1", "data.sources.train.weight"),
        ("learner.max-grad-norm=1", "learner.max_grad_norm"),
    ],
)
def test_an_override_of_an_unknown_key_names_the_nearest_right_one(tmp_path: Path, override: str, nearest: str) -> None:
    finding = _findings(_file(tmp_path), override)[override.split("=", maxsplit=1)[0]]
    assert finding.nearest == nearest
    assert finding.where == "command line"


@pytest.mark.parametrize("override", ["algorithm.dummy=1", "evaluation.part=1", "rollout.colour=1", "fruit=1"])
def test_a_key_that_is_like_no_other_of_its_section_gets_no_guess(tmp_path: Path, override: str) -> None:
    assert _findings(_file(tmp_path), override)[override.partition("=")[0]].nearest == ""


def test_an_override_beyond_a_list_or_without_a_value_is_refused(tmp_path: Path) -> None:
    found = _findings(_file(tmp_path, MINIMAL + "goals: []\n"), "goals.3.metric=reward/mean", "limits.steps", "name=[1")
    assert found["goals.3"].allowed == "no index, since the list is empty"
    assert found["limits.steps"].allowed == "section.key=value"
    assert "not a YAML value" in found["name"].problem


EIGHT_MISTAKES = """\
name: sort
model:
  paht: models/small
data:
  sources:
    train:
      path: data/train.jsonl
      wieght: 2
staleness:
  max_lag: -1
store:
  fsync: everysecond
learner:
  groups_per_step: many
  mini_batchs: 2
reward:
  rules:
    exact: {}
limts:
  steps: 5
"""


def test_a_file_with_eight_mistakes_reports_all_eight_with_lines_and_nearest_names(tmp_path: Path) -> None:
    path = _file(tmp_path, EIGHT_MISTAKES)
    found = _findings(path)
    expected = {
        "model.path": (2, ""),
        "model.paht": (3, "model.path"),
        "data.sources.train.wieght": (8, "data.sources.train.weight"),
        "staleness.max_lag": (10, ""),
        "store.fsync": (12, "'everysec'"),
        "learner.groups_per_step": (14, ""),
        "learner.mini_batchs": (15, "learner.mini_batches"),
        "limts": (19, "limits"),
    }
    assert {key: (f.where, f.nearest) for key, f in found.items()} == {
        key: (f"{path}:{line}", nearest) for key, (line, nearest) in expected.items()
    }
    assert found["staleness.max_lag"].allowed == "0 or more"
    assert found["staleness.max_lag"].found == "-1"
    assert "is required" in found["model.path"].problem
    assert "nearest" not in str(found["limts"])
    assert "did you mean limits?" in str(found["limts"])


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    found = _findings(_file(tmp_path, MINIMAL + "name: again\n"))
    assert str(found["run file"]).endswith(
        "run.yaml:11: error: run file: name stands twice, first on line 1; keep one of them"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [("", "found nothing"), ("- a\n", "found a list"), ("a: [1\n", "run.yaml:2: "), ("a: b: c\n", "run.yaml:1: ")],
)
def test_text_that_is_no_run_file_is_refused_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in str(_findings(_file(tmp_path, text))["run file"])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "absent.yaml: error: run file: there is no such file" in str(_findings(tmp_path / "absent.yaml")["run file"])


def test_words_stay_words_and_exponents_are_numbers(tmp_path: Path) -> None:
    run = load(_file(tmp_path, MINIMAL.replace("name: sort", "name: on") + "learner: {learning_rate: 3e-4}\n"))
    assert run.name == "on"
    assert run.learner.learning_rate == 3e-4


# --- secrets ---


def test_a_password_in_a_url_is_refused_and_never_repeated(tmp_path: Path) -> None:
    path = _file(tmp_path, MINIMAL + "store:\n  url: redis://me:hunter2@host/0\n")
    with pytest.raises(RunFileError) as caught:
        load(path)
    assert "hunter2" not in str(caught.value)
    assert "environment variable" in str(caught.value)
    assert [f.key for f in caught.value.findings] == ["store.url"]


def test_a_secret_in_a_free_mapping_is_refused_and_never_repeated(tmp_path: Path) -> None:
    found = _findings(_file(tmp_path), "reward.rules.exact.args={api_key: hunter2}")
    finding = found["reward.rules.exact.args.api_key"]
    assert "hunter2" not in str(finding)
    assert "environment variable" in finding.remedy


def test_secrets_never_reach_config_yaml() -> None:
    values = {
        "model": {"path": "m"},
        "data": {"sources": {"a": {"path": "a.jsonl"}}, "template_args": {"access_token": "hunter2"}},
        "reward": {"rules": {"judge": {"rule": "my:judge", "args": {"url": "https://me:hunter2@host/x"}}}},
    }
    text = RunFile.model_validate(values).to_yaml()
    assert "hunter2" not in text
    assert "https://me:***@host/x" in text
    assert masked({"eos_token": "<end>", "max_tokens": 3}) == {"eos_token": "<end>", "max_tokens": 3}


# --- config.yaml and resuming ---


def test_config_yaml_reads_back_as_the_same_run_file(tmp_path: Path) -> None:
    overrides = ["goals.0={metric: reward/mean, at_least: 0.1}", "algorithm.kl.coefficient=0.01", "limits.steps=3"]
    run = load(_file(tmp_path), overrides)
    again = load(_file(tmp_path, run.to_yaml(), "config.yaml"))
    assert again == run
    assert changed_on_resume(run, again) == []


def test_only_declared_keys_may_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    config = _file(tmp_path, load(_file(tmp_path)).to_yaml(), "config.yaml")
    run = read_for_resume(
        config, ["limits.steps=9", "learner.learning_rate=2e-6", "goals.0={metric: a/b, at_least: 0}"]
    ).run_file
    assert run is not None
    assert (run.limits.steps, run.learner.learning_rate, len(run.goals)) == (9, 2e-6, 1)
    with pytest.raises(RunFileError) as caught:
        read_for_resume(config, ["limits.steps=9", "staleness.max_lag=1", "data.sources.train.weight=3", "seed=1"])
    assert [f.key for f in caught.value.findings] == ["seed", "data.sources.train.weight", "staleness.max_lag"]
    assert "cannot change when a run is resumed" in str(caught.value)


def test_a_source_that_is_added_or_removed_counts_as_changed(tmp_path: Path) -> None:
    old = load(_file(tmp_path))
    new = load(_file(tmp_path), ["data.sources.more={path: b.jsonl}"])
    assert changed_on_resume(old, new) == ["data.sources"]


# --- schema and documentation ---


def test_the_schema_is_closed_and_explains_every_key() -> None:
    described = schema()
    sections = [described, *described["$defs"].values()]
    objects = [s for s in sections if s.get("type") == "object"]
    assert all(s["additionalProperties"] is False for s in objects)
    assert all(s["description"] for s in objects)
    unexplained = [
        f"{s.get('title')}.{name}"
        for s in objects
        for name, field in s.get("properties", {}).items()
        if "description" not in field and name != "kind" and "$ref" not in field  # a section explains itself
    ]
    assert unexplained == []


def test_the_schema_knows_what_may_change_on_resume() -> None:
    assert schema()["$defs"]["LimitsSection"]["properties"]["steps"]["changeable_on_resume"] is True


def test_the_page_about_the_run_file_is_up_to_date() -> None:
    from penstock.deploy.runfile_docs import markdown

    page = Path(__file__).parents[2] / "docs" / "run-file.md"
    assert page.read_text() == markdown(), "make it anew: penstock schema --markdown > docs/run-file.md"


def test_reading_a_run_file_loads_no_engine_and_no_tensors() -> None:
    heavy = ("torch", "transformers", "vllm", "deepspeed", "ray", "datasets", "pandas", "matplotlib")
    program = f"import sys, penstock.deploy.runfile; print([m for m in {heavy} if m in sys.modules])"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert said.stdout.strip() == "[]"


def test_reading_never_raises_for_what_stands_in_the_file(tmp_path: Path) -> None:
    reading = read(_file(tmp_path, yaml.safe_dump({"model": 3, "data": None, "goals": [3, {"metric": 4}]})))
    assert reading.run_file is None
    keys = {f.key for f in reading.findings}
    assert {"model", "data", "goals.0", "goals.1.metric"} <= keys
