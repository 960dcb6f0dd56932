"""How guards are written in a run file: conditions, actions, names, presets."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from penstock.deploy.catalogue import catalogue
from penstock.deploy.guards.config import ActionSection, Condition, GuardSection, named
from penstock.deploy.guards.presets import PRESETS, expanded, written_at
from penstock.services.metrics import describe


def guard(**keys) -> GuardSection:
    return GuardSection.model_validate({"when": "kl/reference > 0.2", "do": "warn", **keys})


@pytest.mark.parametrize(
    ("text", "holds", "holds_not"),
    [
        ("kl/reference > 0.2", [0.21, float("inf")], [0.2, 0.1, float("nan")]),
        ("kl/reference>=0.2", [0.2, 0.3], [0.19, float("nan")]),
        ("  rollout_corr/ess <  -1e-3 ", [-0.1], [-0.001, 0]),
        ("rollout_corr/ess<=.5", [0.5, 0.4], [0.51, float("nan")]),
    ],
)
def test_a_condition_is_a_metric_a_comparison_and_a_number(text, holds, holds_not):
    condition = Condition.parse(text)
    assert all(condition.holds(value) for value in holds)
    assert not any(condition.holds(value) for value in holds_not)
    assert Condition.parse(str(condition)) == condition


@pytest.mark.parametrize(
    "text",
    [
        "kl/reference",
        "kl/reference > ",
        "kl > x",
        "> 1",
        "a/b == 1",
        "a/b > 1 and c/d < 2",
        "a/b > inf",
        "a/b > 1 for 3",
    ],
)
def test_anything_more_is_refused_with_how_a_condition_is_written(text):
    with pytest.raises(ValueError, match=r"as `kl/reference > 0\.2`; found"):
        Condition.parse(text)


@pytest.mark.parametrize("bound", [12345678, 0.12345678, 1e-7, 3, 1e22])
def test_the_bound_is_kept_as_it_was_written(bound):
    assert Condition.parse(guard(when=f"a/b > {bound}").when).bound == bound


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("a/b > 1", "a/b > 2", True),
        ("a/b > 1", "a/b < 1", False),
        ("a/b >= 1", "a/b <= 1", True),
        ("a/b >= 1", "a/b < 1", False),
        ("a/b > 1", "a/b < 2", True),
        ("a/b < 1", "a/b < 2", True),
        ("a/b > 2", "a/b < 1", False),
    ],
)
def test_two_conditions_overlap_where_one_value_meets_both(one, other, overlap):
    assert Condition.parse(one).overlaps(Condition.parse(other)) is overlap
    assert Condition.parse(other).overlaps(Condition.parse(one)) is overlap


def test_a_word_or_one_action_stands_for_a_list_and_the_file_that_is_written_back_reads_the_same():
    made = guard(do=["pause", {"scale": "kl.coef", "by": 1.5}, {"gate": "close", "minutes": 3}], **{"for": 4})
    assert [str(action) for action in made.do] == ["pause", "scale kl.coef, by 1.5", "gate close, minutes 3.0"]
    assert made.needed == 4
    written = made.model_dump(mode="json")
    assert written["for"] == 4
    assert written["do"] == [{"then": "pause"}, {"scale": "kl.coef", "by": 1.5}, {"gate": "close", "minutes": 3.0}]
    assert GuardSection.model_validate(written) == made
    assert guard(do={"scale": "kl.coef", "by": 2}).do == (ActionSection(scale="kl.coef", by=2),)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ({}, "an action does one thing: scale, set, max_lag, gate, webhook, then; found none of them"),
        ({"scale": "lr", "by": 2, "then": "stop"}, "found scale and then"),
        ({"scale": "lr"}, "scale needs by"),
        ({"scale": "lr", "by": 1}, "scale by 1 changes nothing"),
        ({"scale": "lr", "by": 2, "to": 3}, "to means nothing beside scale"),
        ({"set": "lr"}, "set needs to"),
        ({"gate": "close"}, "gate needs minutes"),
        ({"max_lag": "open"}, "max_lag: open needs at_most"),
        ({"max_lag": "tighten", "by": 1.5}, "moves by whole steps"),
        ({"max_lag": "tighten", "at_least": 1.5}, "a whole number from 0 to 1024; found 1.5"),
        ({"max_lag": "tighten", "at_most": 3}, "at_most means nothing beside max_lag: tighten"),
        ({"max_lag": "open", "at_most": 5000}, "found 5000"),
        ({"scale": "lr", "by": 2, "at_least": 3, "at_most": 2}, "at_least (3) exceeds at_most (2)"),
        ({"webhook": "ftp://x"}, "String should match pattern"),
    ],
)
def test_an_action_that_cannot_be_meant_is_refused(action, said):
    with pytest.raises(ValidationError) as refused:
        guard(do=[action])
    assert said in str(refused.value)


def test_names_come_from_the_metric_and_are_made_different():
    guards = (guard(), guard(name="mine"), guard(), guard(when="a/b < 1"))
    assert [name for name, _ in named(guards)] == ["kl_reference", "mine", "kl_reference_2", "a_b"]


def test_a_guard_that_rolls_back_does_so_three_times_and_then_asks():
    assert (guard(do="roll_back").most, guard(do="roll_back").at_the_end) == (3, "pause")
    assert (guard().most, guard().at_the_end) == (None, "warn")
    assert (guard(do="roll_back", times=5, exhausted="stop").most, guard(times=2).most) == (5, 2)


def test_every_preset_is_made_of_guards_on_metrics_that_exist():
    for preset in PRESETS.values():
        for values in preset:
            made = GuardSection.model_validate(values)
            assert describe(made.condition.metric, catalogue()), made.when
    assert all(each["do"] == ["warn"] for each in PRESETS["watch"])


def test_a_preset_stands_for_its_guards_and_places_are_those_of_the_file():
    own = {"when": "a/b > 1", "do": "stop"}
    assert expanded("safe") == PRESETS["safe"]
    assert expanded(["safe", own]) == [*PRESETS["safe"], own]
    assert written_at(["safe", own], 0) == "guards.0"
    assert written_at(["safe", own], len(PRESETS["safe"])) == "guards.1"
    assert written_at("safe", 3) == "guards"
    with pytest.raises(
        ValueError, match="there is no preset 'saef' of guards; there are: safe, watch; did you mean safe"
    ):
        expanded("saef")
