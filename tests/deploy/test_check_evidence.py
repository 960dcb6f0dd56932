"""What `penstock check` says of archives and audits."""

from __future__ import annotations

import json
from pathlib import Path

import builders
import msgspec
import numpy as np
import pytest
import tiny
import yaml

from penstock.deploy import preflight
from penstock.deploy.checks import context
from penstock.deploy.checks.evidence import FACTS_BYTES
from penstock.deploy.findings import Finding
from penstock.deploy.payload import Payload, payload_of
from penstock.deploy.runfile import load
from penstock.learner import archive
from penstock.learner.algorithms.bound import bind
from penstock.learner.assemble import Moment, assemble
from penstock.learner.config import AlgorithmSection
from penstock.services.codec import encode
from penstock.services.model_facts import describe
from penstock.services.trajectory import Group, Kept, Routing, Sampling, Trajectory
from penstock.services.versions import FIRST, Version

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
    group = 1000 + 40 * 12 + 4 * (600 + 16 * 21)
    columns = 4 * (53 + 40 * 4 + 16 * 38)
    weights, batch = 4 * parameters, 8 * 1024 + 8 * (group + columns)
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


def test_sequences_to_audit_without_a_step_to_audit_are_a_warning(place: Path) -> None:
    (found,) = findings(place, "audit.sequences=5")
    assert (found.level, found.key) == ("warning", "audit.sequences")
    assert found.problem == "no step is audited, since audit.every is 0"
    assert "audit.sequences" not in {f.key for f in findings(place, "audit.sequences=5", "audit.every=2")}


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


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(("kept", "experts"), [(0, (0, 0)), (52, (0, 0)), (1024, (0, 0)), (0, (4, 2)), (20, (48, 8))])
def test_no_archived_step_is_larger_than_is_said_or_half_of_it(
    tmp_path: Path, kept: int, experts: tuple[int, int], reference: bool
) -> None:
    answers, longest, prompt, groups = 3, 120, 60, 4
    made = [group_of(number, answers, longest, prompt, kept, experts, reference) for number in range(groups)]
    payload = Payload(answers, longest, prompt, kept, experts[0] * experts[1])
    assert all(0.5 * payload.group < len(encode(group)) <= payload.group for group in made)

    algorithm = bind(AlgorithmSection.model_validate({"name": "grpo"}))
    batch = assemble(made, algorithm, Moment(FIRST, {}, 1, mask_beyond=False))
    batch = batch.with_columns(logp_learner=batch.logp_sampler.copy())
    step = archive.write(tmp_path / "step", Version(0, 1), batch, {"metrics": {f"a/{i}": 0.1 for i in range(99)}}, made)
    written = sum(file.stat().st_size for file in step.iterdir())
    said = FACTS_BYTES + groups * (payload.group + payload.columns)
    assert 0.5 * said < written <= said


def group_of(
    number: int, answers: int, longest: int, prompt: int, kept: int, experts: tuple[int, int], reference: bool
) -> Group:
    """A group with all that can be recorded of it, as long as it may be; text of four letters per token."""
    layers, top_k = experts
    width = layers * top_k
    trajectories = []
    for member in range(answers):
        tokens = np.arange(longest, dtype=np.int32)
        sets = np.tile(np.arange(max(kept, longest), dtype=np.int32)[:kept], longest)
        actions = tokens < kept if kept else np.ones(longest, np.bool_)  # an action must be among its set
        answer = builders.completion(
            tokens=tokens,
            text="word" * longest,
            actions=actions,
            kept=Kept(counts=np.full(longest, kept, np.int32), tokens=sets) if kept else None,
            routing=Routing(
                layers=layers,
                top_k=top_k,
                prompt=np.zeros(prompt * width, np.int16),
                answer=np.zeros(longest * width, np.int16),
            )
            if width
            else None,
        )
        trajectories.append(
            Trajectory(
                completion=answer,
                reward=float(member),
                parts={"exact": 0.0},
                reference_logprobs=np.zeros(longest, np.float32) if reference else None,
            )
        )
    asked = msgspec.structs.replace(builders.prompt(number, range(prompt)), text="word" * prompt)
    return Group(prompt=asked, sampling=Sampling(), trajectories=tuple(trajectories))


def test_sets_and_experts_count_in_what_an_archive_takes(place: Path) -> None:
    def size(*overrides: str) -> float:
        (found,) = [f for f in findings(place, "archive.every=1", *overrides) if f.key == "archive.keep_last"]
        return float(found.problem.split(" KiB of batch")[0].split()[-1])

    sets = ("rollout.sampling.top_k=8", "rollout.sampling.keep_mask=true", "rollout.sampling.max_kept=9")
    assert size(*sets) - size() == pytest.approx(8 * 4 * 16 * (4 * 9 + 4) / 1024, abs=0.2)


def test_experts_count_by_what_the_model_chooses_of_every_layer(place: Path) -> None:
    file = place / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"num_experts": 8, "num_experts_per_tok": 3}))
    run, facts = load(place / "run.yaml", ["rollout.keep_routing=true"]), describe(str(place / "model"))
    assert payload_of(run, facts).experts == 3 * config["num_hidden_layers"]
    assert payload_of(load(place / "run.yaml"), facts).experts == 0


def test_a_store_that_cannot_hold_what_is_outstanding_is_a_warning(place: Path) -> None:
    long = ("engine.max_model_len=4096", "rollout.sampling.max_tokens=4000", "model.path=model")
    group = 1000 + 40 * 12 + 4 * (600 + 4000 * 21)
    given = (*long, "staleness.max_lag=2")
    enough = [f for f in findings(place, *given, f"store.max_bytes={3 * 8 * group}") if f.key == "store.max_bytes"]
    (found,) = [
        f for f in findings(place, *given, f"store.max_bytes={3 * 8 * group - 1}") if f.key == "store.max_bytes"
    ]
    assert enough == []
    assert found.level == "warning"
    assert "24 groups may be outstanding" in found.problem
    assert f"set it to {3 * 8 * group}" in found.remedy
