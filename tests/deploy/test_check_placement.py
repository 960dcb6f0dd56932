"""What `penstock check` says of where actors shall run."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_parts import check_overridden

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
