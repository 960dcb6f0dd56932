"""What `penstock check` says of numbers and bounds that move by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_parts import check_overridden

AUTO = "rollout.autoscale.max=4"
FOLLOWS = "staleness.max_lag={min: 1, max: 8}"


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["rollout.autoscale={min: 5, max: 4}"], "rollout.autoscale.min", "min is 5, more than max, which is 4"),
        ([AUTO, "rollout.workers=6"], "rollout.workers", "workers is 6, outside of autoscale, which goes from 1 to 4"),
        ([AUTO, "rollout.max_workers=3"], "rollout.autoscale", "autoscale.max is 4, more than max_workers, which is 3"),
        ([AUTO, "staleness.max_lag=0"], "rollout.autoscale", "at staleness.max_lag 0 learner and workers take turns"),
        (["rollout.autoscale.min=2"], "rollout.autoscale.max", "is required and missing"),
        (
            ["reward.scorers=3", "reward.max_scorers=2"],
            "reward.scorers",
            "scorers is 3, more than max_scorers, which is 2",
        ),
        (["staleness.max_lag={min: 4, max: 2}"], "staleness.max_lag.min", "min is 4, more than max, which is 2"),
        (["staleness.max_lag={max: 8, target_ess: 1.2}"], "staleness.max_lag.target_ess", "does not fit"),
        (["staleness.max_lag={max: 8, target_es: 0.9}"], "staleness.max_lag.target_es", "there is no such key"),
        (["staleness.max_lag=lots"], "staleness.max_lag", "does not fit"),
    ],
)
def test_contradictions_are_errors(place: Path, overrides: list[str], key: str, said: str):
    found = check_overridden(place, *overrides)[key]
    assert found.level == "error" and said in found.problem


def test_a_wrong_key_of_the_bound_is_told_with_the_nearest_right_one(place: Path):
    found = check_overridden(place, "staleness.max_lag={max: 8, target_es: 0.9}")["staleness.max_lag.target_es"]
    assert found.nearest == "staleness.max_lag.target_ess"
    assert check_overridden(place, "staleness.max_lag=lots")["staleness.max_lag"].allowed == "a whole number"


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        (["rollout.autoscale={max: 500}"], "rollout.autoscale.max", "the gate admits at most"),
        (["rollout.autoscale={max: 1}"], "rollout.autoscale", "nothing is ever scaled"),
        (["staleness.max_lag={min: 2, max: 2}"], "staleness.max_lag", "the bound cannot move"),
        (
            [FOLLOWS, "guards=[{when: rollout_corr/ess < 0.5, do: {max_lag: tighten}}]"],
            "guards.0",
            "for staleness.max_lag.hold steps only",
        ),
    ],
)
def test_what_has_no_effect_or_little_is_a_warning(place: Path, overrides: list[str], key: str, said: str):
    found = check_overridden(place, *overrides)[key]
    assert found.level == "warning" and said in found.problem


def test_what_is_right_is_not_told_of(place: Path):
    found = check_overridden(place, AUTO, FOLLOWS, "reward.scorers=2", "reward.max_scorers=4", "rollout.max_workers=4")
    assert not [key for key in found if key.startswith(("rollout.autoscale", "staleness", "reward.scorers"))]
