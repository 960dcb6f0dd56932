"""Cells that do not fit each other: each is found, under its key, with what is allowed; and only then."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.learner.algorithms import table
from penstock.learner.algorithms.contradictions import contradictions
from penstock.learner.algorithms.judging import Sizes
from penstock.learner.config import AlgorithmSection

SIZES = Sizes(group_size=8, groups_per_step=4, updates=4, max_tokens=64, steps=50)


def found_in(cells, **sizes):
    """Contradictions of a section by key."""
    section = AlgorithmSection.model_validate(cells)
    return {each.key: each for each in contradictions(section, replace(SIZES, **sizes))}


@pytest.mark.parametrize(
    ("cells", "sizes", "key", "problem", "allowed"),
    [
        ({"name": "rloo"}, {"updates": 1, "group_size": 1}, "rollout.group_size", "has no other", "2 or more"),
        ({"name": "grpo", "quorum": 1}, {}, "algorithm.quorum", "one has no other", "2 or more"),
        ({"name": "ppo", "quorum": 9}, {}, "algorithm.quorum", "no group of 8", "up to 8"),
        (
            {"name": "grpo", "baseline": {"kind": "others_mean"}, "group_filter": "all"},
            {"group_size": 1},
            "algorithm.quorum",
            "no group of 1 answers can have 2",
            "up to 1",
        ),
        ({"name": "ppo", "group_filter": "signal"}, {"group_size": 1}, "algorithm.group_filter", "for ever", "'all'"),
        (
            {"name": "decoupled_ppo"},
            {"group_size": 1, "groups_per_step": 1},
            "algorithm.whitening.over",
            "has no spread",
            "'none'",
        ),
        ({"name": "ppo", "value": {"kind": "none"}}, {}, "algorithm.value", "needs a value model", "own or head"),
        ({"name": "grpo", "credit": {"kind": "gae"}}, {}, "algorithm.value", "gae needs a value model", "own or head"),
        ({"name": "grpo", "credit": {"kind": "vtrace"}}, {}, "algorithm.value", "vtrace needs a value", "own or head"),
        ({"name": "grpo", "value": {"kind": "own"}}, {}, "algorithm.value", "trained for nothing", "none"),
        (
            {"name": "ppo", "baseline": {"kind": "group_mean"}},
            {},
            "algorithm.baseline",
            "so group_mean is never used",
            "none",
        ),
        ({"name": "ppo", "whitening": {"over": "sequences"}}, {}, "algorithm.whitening.over", "of its own", "'tokens'"),
        (
            {"name": "grpo", "whitening": {"over": "tokens"}},
            {},
            "algorithm.whitening.over",
            "long answers decide",
            "'sequences'",
        ),
        (
            {"name": "reinforce", "baseline": {"kind": "group_zscore"}, "quorum": 2},
            {"updates": 1},
            "algorithm.baseline",
            "also divides it",
            "",
        ),
        (
            {"name": "reinforce", "whitening": {"over": "sequences"}},
            {"updates": 1},
            "algorithm.whitening.over",
            "whitening also divides",
            "'none'",
        ),
        (
            {"name": "ppo", "credit": {"kind": "vtrace"}},
            {},
            "algorithm.trust",
            "truncated_is would multiply it twice",
            "none",
        ),
        ({"name": "cispo", "trust": {"kind": "masked_is"}}, {}, "algorithm.trust", "masked_is would multiply", "none"),
        (
            {"name": "ppo", "credit": {"kind": "vtrace"}, "objective": {"kind": "cispo"}, "trust": {"kind": "none"}},
            {},
            "algorithm.objective",
            "both the credit vtrace and the objective cispo",
            "",
        ),
        (
            {"name": "kimi", "reduction": {"kind": "token_mean"}},
            {},
            "algorithm.reduction.kind",
            "would change τ with its length",
            "sequence_sum or fixed_length",
        ),
        (
            {"name": "ppo_kl", "objective": {"coefficient": 0}},
            {},
            "algorithm.objective.coefficient",
            "0 stays 0",
            "more than 0",
        ),
        (
            {"name": "ppo", "value": {"warmup_steps": 50}},
            {},
            "algorithm.value.warmup_steps",
            "only the value model",
            "below 50",
        ),
    ],
)
def test_a_contradiction_is_an_error_under_its_key(cells, sizes, key, problem, allowed):
    found = found_in(cells, **sizes)
    assert key in found, f"found only {list(found)}"
    assert found[key].level == "error"
    assert problem in found[key].problem
    assert allowed in found[key].allowed


@pytest.mark.parametrize(
    ("trust", "level"),
    [
        ({"kind": "truncated_is"}, "warning"),
        ({"kind": "masked_is"}, "warning"),
        ({"kind": "decoupled", "max_weight": 5}, "warning"),
        ({"kind": "decoupled"}, "error"),
    ],
)
def test_a_weight_per_token_beside_one_ratio_per_answer_is_told_and_refused_without_a_bound(trust, level):
    found = found_in({"name": "gspo", "trust": trust})
    assert {key: each.level for key, each in found.items()} == {"algorithm.trust": level}
    assert f"{trust['kind']} weighs every token by itself" in found["algorithm.trust"].problem
    assert found_in({"name": "gspo", "trust": {"kind": "none"}}) == {}


def test_a_penalty_of_0_is_not_laid_on_a_controller_that_there_is_not():
    cells = {"name": "ppo_kl", "objective": {"coefficient": 0, "controller": {"kind": "fixed"}}}
    assert found_in(cells)["algorithm.objective.coefficient"].problem == "there would be no penalty"


def test_a_group_of_one_is_not_told_of_twice():
    assert set(found_in({"name": "grpo"}, group_size=1)) == {"rollout.group_size"}
    both = found_in({"name": "grpo", "quorum": 9}, group_size=1)
    assert set(both) == {"rollout.group_size", "algorithm.quorum"}


@pytest.mark.parametrize(
    ("cells", "sizes", "key", "problem"),
    [
        ({"name": "gspo", "reduction": {"kind": "token_mean"}}, {}, "algorithm.reduction.kind", "every answer once"),
        ({"name": "kimi"}, {"updates": 1}, "algorithm.objective", "regulariser is 0"),
        ({"name": "ppo_kl"}, {"updates": 1}, "algorithm.objective", "whatever its coefficient"),
        ({"name": "decoupled_ppo"}, {"updates": 1}, "algorithm.trust", "without a bound"),
        ({"name": "rloo"}, {"updates": 4}, "algorithm.objective", "policy_gradient has no ratio"),
        ({"name": "reinforce"}, {"updates": 1, "groups_per_step": 1}, "learner.groups_per_step", "there are none"),
        (
            {"name": "dr_grpo", "reduction": {"budget": 32}},
            {},
            "algorithm.reduction.budget",
            "rollout.sampling.max_tokens, which is 64",
        ),
        (
            {"name": "grpo", "trust": {"kind": "none"}, "reject": {"kind": "second_moment"}},
            {},
            "algorithm.trust",
            "nothing weighs those that stay",
        ),
    ],
)
def test_what_is_doubtful_is_a_warning(cells, sizes, key, problem):
    found = found_in(cells, **sizes)
    assert found[key].level == "warning"
    assert problem in found[key].problem
    assert all(each.level == "warning" for each in found.values())


def test_all_contradictions_of_a_section_are_found_at_once():
    cells = {
        "name": "rloo",
        "value": {"kind": "own"},
        "whitening": {"over": "tokens"},
        "objective": {"kind": "cispo"},
        "reject": {"kind": "second_moment"},
    }
    assert set(found_in(cells, group_size=1)) == {
        "rollout.group_size",
        "algorithm.whitening.over",
        "algorithm.value",
        "algorithm.trust",
    }


def test_a_clip_that_a_single_update_leaves_without_effect_is_no_contradiction():
    assert found_in({"name": "grpo"}, updates=1) == {}


def test_a_group_of_one_answer_is_enough_for_values_and_for_a_baseline_of_other_prompts():
    assert found_in({"name": "ppo"}, group_size=1) == {}
    assert found_in({"name": "reinforce"}, group_size=1, updates=1) == {}


def test_vtrace_fits_where_nothing_else_corrects():
    cells = {"name": "ppo", "credit": {"kind": "vtrace"}, "trust": {"kind": "none"}}
    assert found_in(cells) == {}
    assert found_in(cells | {"reject": {"kind": "off_policy_sequence"}}) == {}


def test_every_row_that_compares_answers_of_a_group_refuses_a_group_of_one():
    refused = {n for n in table.rows() if "rollout.group_size" in found_in({"name": n}, group_size=1)}
    assert refused == {"reinforce_pp", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "kimi"}


CELLS = {
    "baseline": [{"kind": kind} for kind in ("none", "group_zscore", "group_mean", "leave_one_out", "others_mean")],
    "whitening": [{"over": over} for over in ("none", "sequences", "tokens")],
    "credit": [{"kind": kind} for kind in ("outcome", "discounted_return", "gae", "vtrace")],
    "objective": [{"kind": kind} for kind in ("policy_gradient", "ppo_clip", "gspo", "cispo", "mirror_descent")]
    + [{"kind": "ppo_kl", "coefficient": 0}],
    "trust": [{"kind": kind} for kind in ("none", "truncated_is", "sequence_is", "decoupled")],
    "reject": [{"kind": kind} for kind in ("none", "second_moment")],
    "value": [{"kind": "none"}, {"kind": "head"}, {"kind": "own", "warmup_steps": 50}],
    "reduction": [{"kind": "token_mean"}, {"kind": "sequence_sum"}, {"kind": "fixed_length", "budget": 3}],
    "group_filter": ["signal", "all"],
    "quorum": [1, 2, 9],
}
SOME = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CELLS.items()})


@settings(max_examples=60, deadline=None)
@given(SOME, SOME, st.sets(st.sampled_from(sorted(CELLS))), st.sampled_from([1, 8]), st.sampled_from([1, 4]))
def test_what_stands_at_an_unknown_key_changes_nothing(cells, others, unknown, group_size, updates):
    """Two algorithms that differ in unknown cells alone are told the same, and of the first nothing is made up."""
    sizes = replace(SIZES, group_size=group_size, updates=updates)

    def told(cells, keys):
        section = AlgorithmSection.model_validate({"name": "grpo", **cells})
        found = contradictions(section, sizes, frozenset(f"algorithm.{key}" for key in keys))
        return {(each.key, each.problem) for each in found}

    mixed = {key: others[key] if key in unknown else value for key, value in cells.items()}
    judged = told(cells, unknown)
    assert told(mixed, unknown) == judged
    if "baseline" not in unknown or group_size > 1:  # else a finding stands by itself that another would have settled
        assert {key for key, _ in judged} <= {key for key, _ in told(cells, ())}


def test_an_unknown_size_of_the_run_is_not_judged_either():
    section = AlgorithmSection.model_validate({"name": "kimi", "quorum": 9})
    sizes = replace(SIZES, group_size=1, updates=1)
    unknown = frozenset({"rollout", "learner.epochs"})
    assert list(contradictions(section, sizes, unknown)) == []
