"""What `penstock check` says of guards, all of it before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from check_parts import check_overridden

KL = "algorithm.kl.coefficient=0.01"
SCALE = {"scale": "kl.coef", "by": 1.5}


def found(place: Path, guards, *overrides: str) -> dict:
    return check_overridden(place, f"guards={json.dumps(guards)}", *overrides)


def guard(when: str = "kl/reference > 0.2", do=SCALE, **keys) -> dict:
    return {"when": when, "do": do, **keys}


def test_right_guards_and_presets_are_found_to_be_right(place: Path):
    assert found(place, [guard(**{"for": 3})], KL) == {}
    assert check_overridden(place, "guards=safe") == {}
    assert check_overridden(place, "guards=watch", KL) == {}


@pytest.mark.parametrize(
    ("guards", "overrides", "key", "said"),
    [
        ([guard("kl/refrence > 0.2")], [KL], "guards.0.when", "did you mean kl/reference?"),
        ([guard(do="warn")], [], "guards.0.when", "algorithm.kl.coefficient is 0"),
        ([guard("kl/staleness > 0.2", "warn")], [], "guards.0.when", "audit.every is 0"),
        ([guard("critic/loss > 0.2", "warn")], [], "guards.0.when", "grpo has no values"),
        (
            [guard("reward/part/lenght > 0.2", "warn")],
            [],
            "guards.0.when",
            "there is no rule 'lenght'; there are: exact",
        ),
        ([guard(do={"scale": "kl.ceof", "by": 2})], [KL], "guards.0.do.scale", "nearest: kl.coef"),
        ([guard(do=[{"set": "lr", "to": 3}])], [KL], "guards.0.do.0.set", "less than or equal to 1"),
        ([guard(do={"scale": "max_lag", "by": 2})], [KL], "guards.0.do.scale", "an action of its own"),
        ([guard(do={"gate": "close", "minutes": 3})], [KL], "guards.0.do.gate", "does not bring kl/reference back"),
        ([guard(do=["stop", "pause"])], [KL], "guards.0.do.0", "after stop there is no pause"),
        ([guard(do=["roll_back", "pause"])], [KL], "guards.0.do.0", "goes back without asking"),
        (
            [guard(do=[SCALE, {"scale": "algorithm.kl.coefficient", "by": 0.5}])],
            [KL],
            "guards.0.do.0",
            "the other down",
        ),
        ([guard(do={"webhook": "$NOT_SET_HERE"})], [KL], "guards.0.do.webhook", "is not set here"),
        (["safe", guard("a/b > 1", "warn")], [], "guards.1.when", "no role records"),
        ("saef", [], "guards", "did you mean safe?"),
        ([guard(do={"scale": "entropy_coefficient", "by": 2})], [KL], "guards.0.do.scale", "begins at 0"),
        ([guard(do={"scale": "lr", "by": 0.5, "at_most": -1})], [KL], "guards.0.do.scale", "greater than 0"),
        ([guard(do={"webhook": "$HOME"})], [KL], "guards.0.do.webhook", "holds no address of http"),
        ([guard(name="a"), guard(name="a")], [KL], "guards.1.name", "guards.0 is called 'a' too"),
        (["safe", "watch"], [], "guards.1.name", "guards.0 is called"),
        (["safe", "sfae"], [], "guards.1", "there is no preset 'sfae'"),
        (["safe", {"when": "a/b > 1"}], [], "guards.1.do", "is required and missing"),
        (["safe", guard(do={"scal": "lr"})], [], "guards.1.do.scal", "did you mean guards.1.do.scale?"),
        ([guard(do=["warn", {"scal": "lr"}])], [], "guards.0.do.1.scal", "allowed: at_least, at_most, by, gate"),
        ([guard(do={"pause": True})], [], "guards.0.do.pause", "written `do: pause`"),
        ([guard(name="a b")], [], "guards.0.name", "allowed: up to 60 letters, digits, '_', '.' and '-'"),
        ([guard(do={"webhook": "ftp://x"})], [], "guards.0.do.webhook", "begins with http:// or https://, or $NAME"),
        (guard(), [], "guards", "one guard is a list, too"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(place: Path, guards, overrides, key, said):
    findings = found(place, guards, *overrides)
    assert said in str(findings[key]), findings
    assert findings[key].level == "error"


def test_two_guards_that_can_hold_together_may_not_pull_at_one_coefficient_in_opposite_directions(place: Path):
    down = {"scale": "kl.coef", "by": 0.5}
    told = found(place, [guard("kl/reference > 0.2"), guard("kl/reference > 0.1", down)], KL)
    both = "'kl/reference > 0.2' of guards.0 and 'kl/reference > 0.1' of guards.1 can hold together"
    assert all(both in told[f"guards.{number}.do"].problem for number in (0, 1))
    assert found(place, [guard("kl/reference > 0.2"), guard("kl/reference < 0.1", down)], KL) == {}


def test_all_mistakes_are_found_together(place: Path):
    findings = found(place, [guard("kl/refrence > 0.2", {"scale": "ll", "by": 2}), guard(do={"gate": "close"})], KL)
    assert set(findings) == {"guards.1.do"}, "of a list with a mistake of form nothing else can be told by its number"
    assert set(found(place, [guard("kl/refrence > 0.2", {"scale": "ll", "by": 2}), guard("a/b > 1")], KL)) == {
        "guards.0.when",
        "guards.0.do.scale",
        "guards.1.when",
    }


def test_a_controller_that_moves_the_same_coefficient_is_pointed_out(place: Path):
    adapts = "algorithm.kl.controller={kind: doubling, target: 0.1}"
    assert found(place, [guard()], KL, adapts)["guards.0.do.scale"].level == "warning"


def test_a_roll_back_for_which_no_checkpoint_would_be_old_enough_is_pointed_out(place: Path):
    doubt = found(place, [guard(do="roll_back", **{"for": 30})], KL)["guards.0.do"]
    assert doubt.level == "warning" and "only 20 steps old" in doubt.problem
    assert found(place, [guard(do="roll_back", **{"for": 30})], KL, "checkpoints.keep_last=3") == {}
