"""Mistakes about filters, what is kept of them, and routing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from check_parts import check_overridden


@pytest.mark.parametrize("override", ["rollout.sampling.top_p=0.9", "rollout.sampling.top_k=20"])
def test_a_filter_without_its_mask_is_refused_with_the_remedy(place: Path, override: str):
    key = override.partition("=")[0]
    found = check_overridden(place, override)[key]
    assert found.level == "error" and "cannot reproduce which tokens were filtered out" in found.problem
    assert "keep_mask: true" in found.remedy
    assert check_overridden(place, override, "rollout.sampling.keep_mask=true") == {}
    assert check_overridden(place, override, stage="evaluate") == {}


def test_a_mask_without_a_filter_is_pointed_out(place: Path):
    found = check_overridden(place, "rollout.sampling.keep_mask=true")["rollout.sampling.keep_mask"]
    assert found.level == "warning" and "every token is kept" in found.problem


def test_a_record_smaller_than_every_set_is_refused(place: Path):
    filters = ("rollout.sampling.keep_mask=true", "rollout.sampling.top_k=20")
    found = check_overridden(place, *filters, "rollout.sampling.max_kept=19")["rollout.sampling.max_kept"]
    assert found.level == "error" and found.allowed == "20 or more"
    assert check_overridden(place, *filters, "rollout.sampling.max_kept=20") == {}


def test_routing_of_a_model_without_experts_is_refused(place: Path):
    found = check_overridden(place, "rollout.keep_routing=true")["rollout.keep_routing"]
    assert found.level == "error" and "no mixture of experts" in found.problem and found.allowed == "false"


def test_routing_that_hooks_would_repeat_is_refused_in_compiled_layers(place: Path):
    both = check_overridden(place, "rollout.keep_routing=true", "learner.compile=true")["learner.compile"]
    assert both.level == "error" and "hooks" in both.problem and both.allowed == "false"
    assert check_overridden(place, "learner.compile=true") == {}


def test_a_mixture_of_experts_without_kept_routing_is_pointed_out(place: Path):
    file = place / "model" / "config.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"num_experts": 4, "num_experts_per_tok": 2}))
    try:
        found = check_overridden(place)["rollout.keep_routing"]
        assert found.level == "warning" and "chooses among 4 experts" in found.problem
        assert "rollout.keep_routing" not in check_overridden(place, "rollout.keep_routing=true")
    finally:
        file.write_text(before)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("min_p", "could not renormalise over the same tokens"),
        ("typical_p", "use top_p or top_k with keep_mask: true"),
        ("repetition_penalty", "changes the logits before a token is drawn"),
        ("logit_bias", "does not repeat that"),
        ("stop_strings", "are rollout.sampling.stop"),
        ("n", "is rollout.group_size"),
        ("max_new_tokens", "is rollout.sampling.max_tokens"),
    ],
)
def test_sampling_that_is_refused_says_why(place: Path, name: str, said: str):
    key = f"rollout.sampling.{name}"
    on_the_command_line = check_overridden(place, f"{key}=1")[key]
    in_a_section = check_overridden(place, f"rollout.sampling={{{name}: 1, max_tokens: 16}}")[key]
    assert on_the_command_line == in_a_section
    assert said in in_a_section.problem
    assert in_a_section.nearest == ""


def test_a_drill_is_pointed_out_and_measures_nothing(place: Path):
    found = check_overridden(place, "engine.kind=paced")
    assert {key: finding.level for key, finding in found.items()} == {"engine.kind": "warning"}
    filtered = check_overridden(place, "engine.kind=paced", "rollout.sampling.top_k=20")["rollout.sampling.top_k"]
    assert filtered.level == "error"
    found = check_overridden(place, "engine.kind=paced", stage="evaluate")["engine.kind"]
    assert found.level == "error" and found.allowed == "vllm"
