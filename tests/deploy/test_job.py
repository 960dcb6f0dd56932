"""Being a job of a Ray cluster: its copy of the working directory, where runs last, and how much time its end has."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from penstock.deploy import job
from penstock.deploy.config import DeadlinesSection
from penstock.deploy.preflight import check
from penstock.deploy.runfile import load

BELOW = "session_x/runtime_resources/working_dir_files/_ray_pkg_{}"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory as Ray copies it, in which this process stands; and a home."""
    folder = tmp_path / BELOW.format("0123abcd")
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


def test_a_folder_in_the_copy_lasts_in_the_users_own_and_others_stay_where_they_are(copy: Path):
    assert job.copy_root(copy / "recipes" / "carry") == copy
    assert job.lasting(copy / "runs") == Path.home() / "penstock" / "runs"
    assert job.copy_root(Path("/data/runs")) is None
    assert job.lasting(Path("/data/runs")) == Path("/data/runs")


def test_a_run_file_in_a_job_keeps_its_runs_where_they_last(copy: Path):
    (copy / "run.yaml").write_text("model: {path: m}\ndata: {sources: {a: {path: a.jsonl}}}\n")
    assert load(copy / "run.yaml").runs_dir == str(Path.home() / "penstock" / "runs")
    assert load(copy / "run.yaml", ["runs_dir=/data/mine"]).runs_dir == "/data/mine"


def test_check_says_where_the_run_is_kept_and_what_ray_may_have_left_out(copy: Path):
    (copy / "run.yaml").write_text("model: {path: ./m}\ndata: {sources: {a: {path: ./a.jsonl}}}\n")
    notes = {finding.key: finding.problem for finding in check(copy / "run.yaml") if finding.level == "note"}
    assert f"the run is kept in {Path.home()}/penstock/runs" in notes["runs_dir"]
    assert notes["data.sources.a.path"].endswith(".gitignore and .rayignore name, and so this may be missing: a.jsonl")
    assert not [f for f in check(copy / "run.yaml", ["runs_dir=/data"]) if f.key == "runs_dir" and f.level == "note"]


def test_paths_into_an_earlier_copy_are_found_again_in_the_present_one(copy: Path):
    earlier = "/tmp/ray/" + BELOW.format("ffff")
    (copy / "data").mkdir()
    (copy / "data" / "train.jsonl").write_text("")
    values = {"a": [{"path": f"{earlier}/data/train.jsonl"}, f"{earlier}/gone.jsonl"], "b": "/data/x", "c": 3}
    assert job.found_again(values) == {
        "a": [{"path": str(copy / "data" / "train.jsonl")}, f"{earlier}/gone.jsonl"],
        "b": "/data/x",
        "c": 3,
    }


def test_without_a_copy_they_are_looked_for_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert job.found_again("/tmp/ray/" + BELOW.format("ffff") + "/model") == str(tmp_path / "model")


class Supervisor:
    """Does at once what it is asked to, as the job's supervisor does in its own process."""

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self.__ray_call__ = SimpleNamespace(remote=lambda function: function(self))


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names under which the supervisor was looked for; this process is a job."""
    asked: list[str] = []

    def find(name: str, namespace: str) -> Supervisor:
        asked.append(f"{namespace} {name}")
        return Supervisor()

    monkeypatch.setattr(ray, "get_actor", find)
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    return asked


def test_rays_supervisor_of_the_job_is_asked_to_wait_as_long_as_an_end_may_take(supervisor, monkeypatch):
    assert job.submission() == "raysubmit_1"
    assert job.ask_for_patience(DeadlinesSection()) == ""
    assert supervisor == ["SUPERVISOR_ACTOR_RAY_NAMESPACE _ray_internal_job_actor_raysubmit_1"]
    import os

    assert os.environ.pop("RAY_JOB_STOP_WAIT_TIME_S") == "661"


@pytest.mark.parametrize(("given", "enough"), [("700", True), ("60", True), ("10", False), ("soon", False)])
def test_a_grace_period_that_was_given_is_left_and_one_that_is_short_is_told_of(supervisor, monkeypatch, given, enough):
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", given)
    said = job.ask_for_patience(DeadlinesSection())
    assert supervisor == []
    assert (said == "") is enough
    if not enough:
        assert f"RAY_JOB_STOP_WAIT_TIME_S is {given}" in said
        assert '--runtime-env-json \'{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "661"}}\'' in said


def test_a_ray_that_has_no_such_supervisor_leads_to_a_warning_with_the_remedy(supervisor, monkeypatch):
    def unknown(name: str, namespace: str) -> None:
        raise ValueError(name)

    monkeypatch.setattr(ray, "get_actor", unknown)
    assert "may kill this run before its checkpoint is written" in job.ask_for_patience(DeadlinesSection())


def test_outside_of_a_job_nobody_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert job.submission() == "" and job.ask_for_patience(DeadlinesSection()) == ""
