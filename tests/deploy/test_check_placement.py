"""What `penstock check` says of where actors shall run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from check_parts import check_overridden

from penstock.deploy.checks import context
from penstock.deploy.runfile import read

COUNT_GPUS = context.Context.__dict__["gpus"]
"""What counts them; tests are told a number."""
JOINED = "placement.ray_address=auto"


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ("{GPU: 2}", "say gpus: 2 beside `resources`"),
        ("{CPU: 0.5}", "say cpus: 0.5 beside `resources`"),
        ("{memory: 1000}", "memory is not asked for by actors"),
        ("{rollout-node: 0}", "less than Ray can count; allowed: 0.0001 or more"),
        ("{rollout-node: -1}", "less than Ray can count"),
        ("{' rollout-node': 1}", "without spaces around it"),
    ],
)
def test_what_is_no_custom_resource_is_refused_with_what_to_say_instead(place: Path, resources: str, said: str) -> None:
    found = check_overridden(place, JOINED, f"placement.rollout.resources={resources}")
    assert said in str(found["placement.rollout.resources"])


def test_an_amount_that_is_no_number_is_told_at_its_own_key(place: Path) -> None:
    found = check_overridden(place, JOINED, "placement.rollout.resources={rollout-node: many}")
    assert "'many'" in str(found["placement.rollout.resources.rollout-node"])


def test_custom_resources_and_growth_need_a_cluster_that_is_joined(place: Path) -> None:
    wanted = ("placement.scorer.resources={cpu-node: 0.001}", "placement.grows=true")
    alone = check_overridden(place, *wanted)
    assert "has no custom resources" in str(alone["placement.scorer.resources"])
    assert "does not grow" in str(alone["placement.grows"])
    joined = check_overridden(place, JOINED, *wanted, "placement.device=cpu")
    assert not any(key.startswith("placement") for key in joined if key != "placement.ray_address"), (
        "nobody answers there"
    )


def test_the_device_of_a_cluster_that_grows_is_said_and_not_looked_for(place: Path) -> None:
    found = check_overridden(place, JOINED, "placement.grows=true")
    assert found["placement.device"].level == "warning"
    assert "say cuda or cpu" in str(found["placement.device"])


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(context.Context, "gpus", 0)
    monkeypatch.setattr(context, "DRIVERS", ())


@pytest.mark.parametrize("stage", context.STAGES)
def test_cuda_without_a_gpu_is_refused(no_gpu: None, place: Path, stage: context.Stage) -> None:
    found = check_overridden(place, "placement.device=cuda", stage=stage)["placement.device"]
    assert (found.level, found.allowed) == ("error", "auto, cpu")


def test_nothing_is_known_of_a_clusters_gpus_nor_of_a_driver_that_nobody_can_ask(
    no_gpu: None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "placement.device" not in check_overridden(place, JOINED, "placement.device=cuda")
    monkeypatch.setattr(context, "DRIVERS", ("/dev/null",))
    assert "placement.device" not in check_overridden(place, "placement.device=cuda")


def test_a_share_of_a_gpu_that_is_not_there_is_of_no_effect(no_gpu: None, place: Path) -> None:
    found = check_overridden(place, "placement.learner.gpus=1")
    assert found["placement.learner.gpus"].level == "warning"
    assert "of no effect" in str(found["placement.learner.gpus"])


def test_more_gpus_than_there_are_is_refused_by_the_actor_and_all_together(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(context.Context, "gpus", 1)
    for role in ("learner", "rollout"):
        found = check_overridden(place, f"placement.{role}.gpus=2")[f"placement.{role}.gpus"]
        assert (found.level, found.allowed) == ("error", "up to 1")
    shares = ("placement.learner.gpus=0.5", "placement.rollout.gpus=0.75")
    assert "want 1.25 GPUs, this machine has 1" in str(check_overridden(place, *shares)["rollout.workers"])
    assert "rollout.workers" not in check_overridden(place, shares[0], "placement.rollout.gpus=0.5")


@pytest.mark.parametrize(("visible", "count"), [(None, 2), ("0", 1), ("", 0), ("-1", 0), ("0,1,2", 2)])
def test_gpus_that_are_hidden_from_the_run_are_not_counted(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str | None, count: int
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: one'\necho 'GPU 1: another'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    check_overridden(place)  # writes the run file
    reading = read(place / "run.yaml")
    assert reading.run_file is not None
    assert COUNT_GPUS.func(context.Context(reading.run_file, reading.source, "train")) == count
