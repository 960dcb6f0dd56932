"""What `penstock check` says of archives and audits."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import yaml

from penstock.deploy import preflight
from penstock.deploy.checks import context
from penstock.deploy.findings import Finding

GOOD = {
    "model": {"path": "model"},
    "data": {"sources": {"train": {"path": "train.jsonl"}}, "max_prompt_tokens": 40},
    "reward": {"rules": {"exact": {}}},
    "rollout": {"group_size": 4, "sampling": {"max_tokens": 16}},
    "learner": {"groups_per_step": 8},
    "engine": {"max_model_len": 64, "kv_cache_gib": 0.01},
    "limits": {"steps": 50},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text('{"prompt": "2+2=", "answer": "4"}\n')
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(GOOD))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(context.Context, "gpus", 0)
    monkeypatch.setattr(context.Context, "cpus", 2)
    return tmp_path


def findings(place: Path, *overrides: str) -> list[Finding]:
    return preflight.check(place / "run.yaml", overrides)


def test_the_disk_that_an_archive_takes_is_shown_and_no_warning(place: Path) -> None:
    (found,) = findings(place, "archive.every=10", "archive.weights=true", "archive.keep_last=3")
    parameters = sum(p.numel() for p in tiny.model().parameters())
    weights, batch = 4 * parameters, 8 * 4 * (16 * 60 + 40 * 5)
    assert (found.level, found.key) == ("note", "archive.keep_last")
    assert f"up to {batch / 1024:.1f} KiB of batch and {weights / 1024:.1f} KiB of weights" in found.problem
    assert f"4 of them {4 * (batch + weights) / 1024:.1f} KiB" in found.problem
    _, warnings = preflight.require(place / "run.yaml", ["archive.every=10"])
    assert warnings == []


def test_a_value_model_of_its_own_counts_too(place: Path) -> None:
    def weights(*overrides: str) -> float:
        notes = [f for f in findings(place, "archive.every=1", "archive.weights=true", *overrides) if f.level == "note"]
        return float(notes[0].problem.split(" KiB of weights")[0].split()[-1])

    assert weights("algorithm.name=ppo") == pytest.approx(2 * weights(), rel=1e-2)


def test_an_archive_that_is_too_large_for_the_disk_is_a_warning(place: Path) -> None:
    found = findings(place, "archive.every=1", "archive.weights=true", f"archive.keep_last={10**12}")
    assert [f.level for f in found] == ["warning", "note"]
    assert "free" in found[0].problem


def test_weights_without_batches_are_a_warning(place: Path) -> None:
    (found,) = findings(place, "archive.weights=true")
    assert (found.level, found.problem) == ("warning", "no step is archived, since archive.every is 0")


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_audits_between_cards_are_refused_with_the_reason(place: Path, transport: str) -> None:
    found = {f.key: f for f in findings(place, "audit.every=5", f"weights.transport={transport}")}
    assert found["audit.every"].level == "error"
    assert "without leaving a copy" in found["audit.every"].problem
    assert "shm or file" in found["audit.every"].allowed


def test_what_audits_keep_is_shown(place: Path) -> None:
    (found,) = findings(place, "audit.every=5", "staleness.max_lag=4")
    assert found.level == "note"
    assert "keep the last 6 published versions, and one more is being written: 7 times" in found.problem
