"""`penstock check`: every rule finds its mistake, and a good run file has none."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import yaml
from check_parts import GOOD
from check_parts import check_overridden as _check

from penstock.deploy import preflight
from penstock.deploy.checks import context, world


def test_a_good_run_file_has_no_findings(place: Path) -> None:
    assert _check(place) == {}
    assert _check(place, stage="evaluate") == {}


@pytest.mark.parametrize(
    ("override", "key", "said"),
    [
        ("reward=null", "reward", "is required and missing"),
        ("rollout.group_size=1", "rollout.group_size", "compares the answers of a group"),
        ("algorithm.quorum=9", "algorithm.quorum", "no group of 8 answers can have 9 scored ones"),
        ("rollout.sampling.top_p=0.9", "rollout.sampling.top_p", "cannot reproduce which tokens were filtered out"),
        ("rollout.sampling.top_k=20", "rollout.sampling.top_k", "cannot reproduce which tokens were filtered out"),
        ("rollout.sampling.temperature=0", "rollout.sampling.temperature", "more than 0"),
        ("rollout.sampling.max_tokens=64", "rollout.sampling.max_tokens", "up to 63"),
        ("learner.ranks=300", "learner.ranks", "up to 256"),
        ("engine.max_model_len=256", "engine.max_model_len", "up to 128"),
        ("weights.transport=nccl", "weights.transport", "none is in use"),
        ("model.path=./modle", "model.path", "did you mean"),
        ("data.sources.train.path=trian.jsonl", "data.sources.train.path", "train.jsonl"),
        ("data.sources.train.columns.prompt=promt", "data.sources.train.columns.prompt", "'prompt'"),
        ("evaluation.data.sources.held_out.path=held.jsonl", "evaluation.data.sources.held_out.path", "held_out.jsonl"),
        ("reward.rules.exact.rule=exakt", "reward.rules.exact.rule", "did you mean 'exact'?"),
        ("reward.rules.exact.rule=mine:score", "reward.rules.exact.rule", "no installed module 'mine'"),
        ("reward.rules.exact.args.column=anwser", "reward.rules.exact.args.column", "did you mean 'answer'?"),
        ("rollout.sampling.stop=['ab']", "rollout.sampling.stop.0", "is 2 tokens of this tokenizer"),
        ("data.chat_template=always", "data.chat_template", "no chat template"),
        ("store.url=redis://127.0.0.1:1/0", "store.url", "start the server, correct the url"),
        ("runs_dir=/proc/runs", "runs_dir", "/proc"),
    ],
)
def test_a_mistake_is_found_with_its_key_and_what_is_allowed(
    place: Path, override: str, key: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.deploy.checks.world.STORE_DEADLINE", 0.3)
    found = _check(place, override)
    assert key in found, f"found only {list(found)}"
    assert found[key].level == "error"
    assert said in str(found[key])


@pytest.mark.parametrize(
    ("override", "key", "said"),
    [
        ("limits.steps=null", "limits", "nothing ends this run but you"),
        ("deadlines.silence=30", "deadlines.silence", "still for store.deadline, 30 s, and would be ended"),
        ("staleness.max_lag=0", "rollout.workers", "some of the 40 workers have nothing to do"),
        ("engine.dtype=bfloat16", "engine.dtype", "did you mean 'float32'?"),
        ("checkpoints.every=60", "checkpoints.every", "one checkpoint, at its end"),
        ("reward.environment=[PENSTOCK_TEST_UNSET]", "reward.environment", "PENSTOCK_TEST_UNSET is not set"),
        ("reward.reference.model={path: model}", "reward.reference.model", "it is never used"),
        (
            "evaluation.data.sources.held_out.path=train.jsonl",
            "evaluation.data.sources.held_out.path",
            "the same data as data.sources.train",
        ),
        (
            "algorithm.reduction={kind: fixed_length, budget: 15}",
            "algorithm.reduction.budget",
            "differs from rollout.sampling.max_tokens, which is 16",
        ),
        ("engine.kv_cache_gib=100000", "rollout.workers", "need about"),
    ],
)
def test_a_doubt_is_a_warning_and_keeps_nothing_from_starting(place: Path, override: str, key: str, said: str) -> None:
    more = ["rollout.workers=40"] if override.startswith("staleness") else []
    found = _check(place, override, *more)
    assert found[key].level == "warning"
    assert said in str(found[key])
    assert all(f.level == "warning" for f in found.values())
    preflight.require(place / "run.yaml", [override])


def test_more_threads_than_cores_is_a_warning(place: Path) -> None:
    assert "want 6 threads, this machine has 2 cores" in str(_check(place, "rollout.workers=5")["rollout.workers"])


def test_too_few_gpus_are_an_error_unless_learner_and_engines_share(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context.Context, "gpus", 1)
    assert "want 2 GPUs, this machine has 1" in str(_check(place)["rollout.workers"])
    assert _check(place, "placement.colocate=true", "engine.memory_share=0.4") == {}
    assert "leaves little" in str(_check(place, "placement.colocate=true")["engine.memory_share"])


def test_a_full_disk_is_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage("/")._replace(free=10 * 1024**2)
    monkeypatch.setattr(world.shutil, "disk_usage", lambda _path: full)
    assert "0.0 GiB free" in str(_check(place)["runs_dir"])


def test_goals_and_the_best_checkpoint_are_about_metrics_that_exist(place: Path) -> None:
    found = _check(place, "goals.0={metric: reward/maen, at_least: 1}", "checkpoints.keep_best=reward/accurracy")
    assert found["goals.0.metric"].nearest == "reward/mean"
    assert found["checkpoints.keep_best"].nearest == "eval/greedy/accuracy"
    assert _check(place, "goals.0={metric: reward/part/exact, at_least: 1}") == {}


def test_fine_tuning_needs_answers_and_no_reward(place: Path) -> None:
    found = _check(place, "reward=null", stage="sft")
    assert set(found) == {"data.sources.train.columns.response"}
    assert _check(place, "reward=null", "data.sources.train.columns.response=answer", stage="sft") == {}


def test_mistakes_of_form_and_of_substance_are_reported_together(place: Path) -> None:
    overrides = ("model.path=./modle", "rollout.group_size=1", "data.sources.train.columns.prompt=promt")
    bad = GOOD | {
        "learner": {"learning_rat": 1, "ranks": "two"},
        "engine": {"dtype": "flaot32", "max_model_len": 64},
        "limts": {},
    }
    path = place / "bad.yaml"
    path.write_text(yaml.safe_dump(bad, sort_keys=False))
    found = {f.key: f for f in preflight.check(path, overrides)}
    assert set(found) == {
        "learner.learning_rat",
        "learner.ranks",
        "engine.dtype",
        "limts",
        "model.path",
        "rollout.group_size",
        "data.sources.train.columns.prompt",
    }


def test_a_section_that_cannot_be_had_keeps_no_other_from_being_looked_at(place: Path) -> None:
    path = place / "bad.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in GOOD.items() if k != "model"} | {"modle": {"path": "model"}}))
    found = {f.key: f for f in preflight.check(path, ["rollout.group_size=1"])}
    assert set(found) == {"model", "modle", "rollout.group_size"}
    assert found["modle"].nearest == "model"


def test_errors_stand_before_warnings(place: Path) -> None:
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    levels = [f.level for f in preflight.check(path, ["engine.dtype=bfloat16", "rollout.group_size=1"])]
    assert levels == ["error", "warning"]


@pytest.mark.parametrize(
    ("second_row", "said"),
    [('{"prompt": 3, "answer": "4"}', "prompt"), ("{oops", "line 2"), ('{"prompt": "", "answer": "4"}', "prompt")],
)
def test_a_row_that_cannot_be_used_is_found_before_anything_starts(place: Path, second_row: str, said: str) -> None:
    (place / "broken.jsonl").write_text('{"prompt": "2+2=", "answer": "4"}\n' + second_row + "\n")
    for key in ("data.sources.train", "evaluation.data.sources.held_out"):
        found = _check(place, f"{key}.path=broken.jsonl")
        assert found[key].level == "error"
        assert said in found[key].problem and "broken.jsonl" in found[key].problem


def test_a_page_that_cannot_be_served_keeps_the_run_from_starting(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_DASHBOARD_TOKEN", raising=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        found = _check(place, "dashboard.enabled=true", f"dashboard.port={other.getsockname()[1]}")
    assert "is in use; take another one, or 0 for any that is free" in str(found["dashboard.port"])
    found = _check(place, "dashboard.enabled=true", "dashboard.host=0.0.0.0")
    assert "needs a token" in str(found["dashboard.token_env"])


def test_a_held_out_prompt_is_measured_with_the_evaluations_own_budget(place: Path) -> None:
    (place / "wordy.jsonl").write_text(json.dumps({"prompt": "1" * 30, "answer": "4"}) + "\n")
    wordy = "evaluation.data.sources.held_out.path=wordy.jsonl"
    key = "evaluation.data.sources.held_out"
    assert key not in _check(place, wordy)
    assert "leaves less than evaluation.max_tokens" in str(_check(place, wordy, "evaluation.max_tokens=50")[key])
