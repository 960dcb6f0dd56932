"""Which coefficients of a run may be turned, by which names, and what they may be."""

from __future__ import annotations

import pytest

from penstock.learner.config import AlgorithmSection, LearnerSection
from penstock.learner.dials import KL, MAX_LAG, Dials
from penstock.services.control import Refused


def dials(max_lag: int = 2, **algorithm) -> Dials:
    return Dials(AlgorithmSection.model_validate({"name": "grpo", **algorithm}), LearnerSection(), max_lag)


def test_every_number_of_objective_and_trust_can_be_turned_and_a_kl_only_where_there_is_a_reference():
    plain = dials(entropy_coefficient=0.01).start
    assert plain == {
        "learning_rate": 1e-6,
        "max_lag": 2.0,
        "entropy_coefficient": 0.01,
        "objective.clip_low": 0.2,
        "objective.clip_high": 0.2,
        "trust.max_weight": plain["trust.max_weight"],
    }
    assert dials(kl={"coefficient": 0.02}).start[KL] == 0.02


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("kl.coef", (KL,)),
        ("algorithm.kl.coefficient", (KL,)),
        ("lr", ("learning_rate",)),
        ("clip", ("objective.clip_low", "objective.clip_high")),
        ("algorithm.objective.clip_low", ("objective.clip_low",)),
        ("staleness.max_lag", (MAX_LAG,)),
    ],
)
def test_other_words_for_a_coefficient_are_understood(word, names):
    assert dials(kl={"coefficient": 0.02}).find(word) == names


def test_a_row_without_a_clip_has_none_and_says_what_it_has():
    with pytest.raises(Refused, match=r"'clip' is no coefficient of this run .* objective.max_weight"):
        dials(objective={"kind": "cispo"}).find("clip")


def test_a_kl_that_began_at_nothing_cannot_be_raised_and_the_reason_is_said():
    with pytest.raises(Refused, match=r"no reference model is there\. Start it with a small one"):
        dials().find("kl.coef")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("learning_rate", 2.0, "less than or equal to 1"),
        ("entropy_coefficient", -0.1, "greater than or equal to 0"),
        ("objective.clip_low", 0.0, "greater than 0"),
        ("trust.max_weight", 0.5, "greater than or equal to 1"),
        (KL, 200.0, "less than or equal to 100"),
        (MAX_LAG, 1.5, "whole numbers from 0 to 1024"),
        (KL, float("inf"), "must be a number"),
    ],
)
def test_values_keep_to_the_bounds_of_the_run_file(name, value, said):
    with pytest.raises(Refused, match=said):
        dials(kl={"coefficient": 0.02}).check(name, value)


def test_a_kl_may_be_switched_off_unless_a_controller_multiplies_it():
    dials(kl={"coefficient": 0.02}).check(KL, 0.0)
    with pytest.raises(Refused, match="it would stay 0 for good"):
        dials(kl={"coefficient": 0.02, "controller": {"kind": "doubling", "target": 0.1}}).check(KL, 0.0)
