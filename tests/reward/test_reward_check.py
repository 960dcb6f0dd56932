"""Mistakes in a reward section are found together, before anything runs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from penstock.reward.check import problems
from penstock.reward.config import ReferenceSection, RewardSection, RuleSection
from penstock.services.model_config import ModelSection


def section(folder, **rules):
    return RewardSection(rules={k: RuleSection(**v) for k, v in rules.items()}, folder=str(folder))


def test_a_good_section_has_no_problems(folder):
    made = section(folder, exact={}, own={"rule": "mine:same"}, late={"rule": "mine:later"}, lib={"rule": "json:loads"})
    assert problems(made, ["answer"]) == []


def test_all_mistakes_are_found_at_once_each_with_its_key(folder):
    made = section(
        folder,
        exakt={},
        regex={},
        soft_overlong={"args": {"max_tokens": 5, "cache_token": 1}},
        numeric={"args": {"column": "anser"}},
        a={"rule": "mine:sam"},
        b={"rule": "mien:same"},
        c={"rule": "mine:"},
    )
    found = dict(problems(made, ["answer", "level"]))
    assert found["rules.exakt.rule"].endswith("did you mean 'exact'?")
    assert found["rules.regex.args"] == "the rule 'regex' needs the argument 'pattern'"
    assert "did you mean 'cache_tokens'?" in found["rules.soft_overlong.args.cache_token"]
    assert found["rules.soft_overlong.args"] == "the rule 'soft_overlong' needs the argument 'cache_tokens'"
    assert (
        found["rules.numeric.args.column"]
        == "the data has no column 'anser'; it has answer, level; did you mean 'answer'?"
    )
    assert "has no 'sam'" in found["rules.a.rule"]
    assert found["rules.a.rule"].endswith("did you mean 'same'?")
    assert found["rules.b.rule"].endswith("no installed module 'mien'; did you mean 'mine'?")
    assert "written module:function" in found["rules.c.rule"]
    assert len(found) == 8


@pytest.mark.parametrize(
    ("rule", "args", "key", "said"),
    [
        ("regex", {"pattern": "("}, "pattern", "this is none: missing )"),
        ("regex", {"pattern": 3}, "pattern", "takes here a regular expression"),
        ("exact", {"column": ["answer"]}, "column", "takes here the name of a column"),
        ("contains", {"case": "no"}, "case", "takes here true or false"),
        ("numeric", {"tolerance": "x"}, "tolerance", "takes here a number, 0 or more"),
        ("numeric", {"tolerance": float("nan")}, "tolerance", "0 or more"),
        ("math", {"seconds": 0.5}, "seconds", "a whole number, 1 or more"),
        ("soft_overlong", {"max_tokens": 4, "cache_tokens": 9}, "cache_tokens", "allowed is up to 4"),
        ("length", {"accuracy": "later"}, "accuracy", "no earlier part has this name; those are: first"),
    ],
)
def test_an_argument_that_a_built_in_rule_cannot_use_is_told_before_it_is_called(folder, rule, args, key, said):
    made = section(folder, first={"rule": "exact"}, part={"rule": rule, "args": args}, later={"rule": "exact"})
    ((where, text),) = problems(made, ["answer"])
    assert where == f"rules.part.args.{key}"
    assert said in text


@pytest.mark.parametrize(
    ("rule", "args"),
    [
        ("regex", {"pattern": "(?i)yes", "column": None}),
        ("exact", {"case": False}),
        ("numeric", {"tolerance": 0}),
        ("soft_overlong", {"max_tokens": 4, "cache_tokens": 4}),
        ("length", {"accuracy": "first"}),
    ],
)
def test_what_a_built_in_rule_can_use_is_no_problem(folder, rule, args):
    made = section(folder, first={"rule": "exact"}, part={"rule": rule, "args": args})
    assert problems(made, ["answer"]) == []


def test_columns_are_not_checked_where_they_are_unknown(folder):
    assert problems(section(folder, exact={}), None) == []


def test_a_file_that_does_not_parse_is_named_with_its_line(folder):
    (folder / "broken.py").write_text("x = 1\ndef f(:\n")
    ((key, text),) = problems(section(folder, x={"rule": "broken:f"}))
    assert key == "rules.x.rule"
    assert "broken.py line 2" in text


def test_looking_does_not_run_the_module(folder):
    (folder / "loud.py").write_text("raise SystemExit\ndef f(completions): ...\n")
    assert problems(section(folder, x={"rule": "loud:f"})) == []


def test_the_accuracy_is_the_first_part_unless_said_otherwise():
    rules = {"one": RuleSection(rule="exact"), "two": RuleSection(rule="contains")}
    assert RewardSection(rules=rules).accuracy_part == "one"
    assert RewardSection(rules=rules, accuracy="two").accuracy_part == "two"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"accuracy": "three"}, "accuracy must be one of the parts one; found 'three'"),
        ({"rules": {"one": {"weight": 0}}}, "every part has weight 0"),
        ({"rules": {}}, "at least 1 item"),
        ({"wrokers": 2}, "Extra inputs are not permitted"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(changes, text):
    with pytest.raises(ValidationError, match=text):
        RewardSection.model_validate({"rules": {"one": {"rule": "exact"}}} | changes)


def test_paths_become_absolute(tmp_path):
    reference = ReferenceSection(model=ModelSection(path="./start"))
    made = RewardSection(rules={"exact": RuleSection()}, reference=reference).located(tmp_path)
    assert made.folder == str(tmp_path)
    assert made.reference.model is not None
    assert made.reference.model.path == str(tmp_path / "start")
