"""What `penstock check` says of cells that do not fit: remedies that mend, and nothing about what is not known yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_parts import check_overridden

from penstock.deploy.checks.algorithm import sizes_of
from penstock.deploy.runfile import load
from penstock.learner.algorithms.contradictions import RULES

TWO = "learner.mini_batches=2"
ALONE = ("algorithm.baseline={kind: others_mean}", "algorithm.quorum=1", "algorithm.group_filter=all")
REMEDIES: list[tuple[tuple[str, ...], str, tuple[str, ...]]] = [
    # What is wrong, the key it is told at, and what the finding says is to be done about it.
    (("name=rloo", "rollout.group_size=1"), "rollout.group_size", ("rollout.group_size=2",)),
    (("name=rloo", "rollout.group_size=1"), "rollout.group_size", ALONE),
    (
        ("name=rloo", "rollout.group_size=1", "learner.groups_per_step=1"),
        "rollout.group_size",
        (*ALONE, "learner.groups_per_step=2"),
    ),
    (("name=ppo", TWO, "group_filter=signal", "rollout.group_size=1"), "algorithm.group_filter", ALONE[2:]),
    (("quorum=1",), "algorithm.quorum", ("algorithm.quorum=2",)),
    (("quorum=9",), "algorithm.quorum", ("algorithm.quorum=8",)),
    ((ALONE[0], ALONE[2], "rollout.group_size=1"), "algorithm.quorum", ("algorithm.quorum=1",)),
    (
        ("name=decoupled_ppo", "learner.epochs=2", "learner.groups_per_step=1", "rollout.group_size=1"),
        "algorithm.whitening.over",
        ("algorithm.whitening={over: none}",),
    ),
    (("name=reinforce", "learner.groups_per_step=1"), "learner.groups_per_step", ("learner.groups_per_step=2",)),
    (("name=ppo", TWO, "baseline={kind: group_mean}"), "algorithm.baseline", ("algorithm.baseline={kind: none}",)),
    (
        ("name=ppo", TWO, "whitening.over=sequences"),
        "algorithm.whitening.over",
        ("algorithm.whitening.over=tokens",),
    ),
    (("whitening.over=tokens",), "algorithm.whitening.over", ("algorithm.whitening.over=sequences",)),
    (
        ("name=reinforce", "whitening.over=tokens"),
        "algorithm.whitening.over",
        ("algorithm.credit={kind: outcome}", "algorithm.whitening={over: none}"),
    ),
    (
        ("name=reinforce", "baseline={kind: group_zscore}", "quorum=2"),
        "algorithm.baseline",
        ("algorithm.baseline={kind: group_mean}",),
    ),
    (
        ("name=reinforce", "whitening.over=sequences"),
        "algorithm.whitening.over",
        ("algorithm.credit={kind: outcome}",),
    ),
    (
        ("credit={kind: gae}", "baseline={kind: none}"),
        "algorithm.value",
        ("algorithm.value={kind: own}",),
    ),
    (("value={kind: own}",), "algorithm.value", ("algorithm.value={kind: none}",)),
    (
        ("name=ppo", TWO, "value.warmup_steps=50"),
        "algorithm.value.warmup_steps",
        ("algorithm.value.warmup_steps=49",),
    ),
    (("name=ppo", TWO, "credit={kind: vtrace}"), "algorithm.trust", ("algorithm.trust={kind: none}",)),
    (("name=cispo", "trust={kind: masked_is}"), "algorithm.trust", ("algorithm.trust={kind: none}",)),
    (
        ("name=ppo", TWO, "credit={kind: vtrace}", "objective={kind: cispo}", "trust={kind: none}"),
        "algorithm.objective",
        ("algorithm.objective={kind: ppo_clip}",),
    ),
    (
        ("name=ppo", TWO, "credit={kind: vtrace}", "objective={kind: cispo}", "trust={kind: none}"),
        "algorithm.objective",
        ("algorithm.credit={kind: gae}",),
    ),
    (("name=gspo", "trust={kind: masked_is}"), "algorithm.trust", ("algorithm.trust={kind: sequence_is}",)),
    (("name=gspo", "trust={kind: decoupled}"), "algorithm.trust", ("algorithm.trust={kind: sequence_is}",)),
    (("name=kimi", TWO, "trust={kind: truncated_is}"), "algorithm.trust", ("algorithm.trust={kind: none}",)),
    (
        ("name=kimi", TWO, "trust={kind: sequence_is}", "reject={kind: second_moment}"),
        "algorithm.reject",
        ("algorithm.reject={kind: none}",),
    ),
    (
        ("name=kimi", TWO, "trust={kind: sequence_is}", "reject={kind: second_moment}"),
        "algorithm.reject",
        ("algorithm.reject={kind: off_policy_sequence}",),
    ),
    (
        ("trust={kind: none}", "reject={kind: second_moment}"),
        "algorithm.trust",
        ("algorithm.trust={kind: truncated_is}",),
    ),
    (
        ("name=kimi", TWO, "reduction={kind: token_mean}"),
        "algorithm.reduction.kind",
        ("algorithm.reduction.kind=sequence_sum",),
    ),
    (
        ("name=gspo", "reduction={kind: token_mean}"),
        "algorithm.reduction.kind",
        ("algorithm.reduction.kind=sequence_mean",),
    ),
    (
        ("name=dr_grpo", "reduction.budget=15"),
        "algorithm.reduction.budget",
        ("algorithm.reduction.budget=null",),
    ),
    (
        ("name=ppo_kl", TWO, "objective.coefficient=0"),
        "algorithm.objective.coefficient",
        ("algorithm.objective.coefficient=1",),
    ),
    (("name=kimi",), "algorithm.objective", (TWO,)),
    (("name=ppo_kl",), "algorithm.objective", ("learner.epochs=2",)),
    (("name=decoupled_ppo",), "algorithm.trust", (TWO,)),
    (("name=decoupled_ppo",), "algorithm.trust", ("algorithm.trust={kind: truncated_is}",)),
    (("name=rloo", TWO), "algorithm.objective", ("algorithm.objective={kind: ppo_clip}",)),
    (("name=rloo", TWO), "algorithm.objective", ("learner.epochs=1", "learner.mini_batches=1")),
]


def full(overrides: tuple[str, ...]) -> list[str]:
    """With `algorithm.` before those that name a cell alone."""
    sections = ("algorithm.", "rollout.", "learner.")
    return [each if each.startswith(sections) else f"algorithm.{each}" for each in overrides]


@pytest.mark.parametrize(("wrong", "key", "remedy"), REMEDIES)
def test_the_stated_remedy_mends_a_contradiction(
    place: Path, wrong: tuple[str, ...], key: str, remedy: tuple[str, ...]
) -> None:
    finding = check_overridden(place, *full(wrong))[key]
    said = str(finding)
    assert finding.found, said
    for setting in remedy:
        name, _, value = setting.partition("=")
        assert f"{name}: {value}" in said or (name == finding.key and finding.allowed), said
    assert check_overridden(place, *full(wrong), *remedy) == {}


def test_every_contradiction_has_a_remedy_that_was_tried(place: Path) -> None:
    check_overridden(place)
    seen = set()
    for wrong, _, _ in REMEDIES:
        run = load(place / "run.yaml", full(wrong))
        seen |= {rule for rule in RULES if rule.judge(run.algorithm, sizes_of(run)) is not None}
    assert seen == set(RULES)


@pytest.mark.parametrize("name", ["reinforce_pp", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "kimi"])
def test_a_group_of_one_is_one_finding_whose_remedy_is_whole(place: Path, name: str) -> None:
    wrong = [f"algorithm.name={name}", "rollout.group_size=1", *([] if name == "rloo" else [TWO])]
    assert set(check_overridden(place, *wrong)) == {"rollout.group_size"}
    assert check_overridden(place, *wrong, *ALONE) == {}


# --- beside mistakes of form ---


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        # The kind of a cell is known, whatever is wrong with its other keys.
        (("name=ppo", TWO, "credit={kind: vtrace, max_c: 2}"), {"algorithm.credit", "algorithm.trust"}),
        (("name=ppo", TWO, "credit={kind: vtrace, gamma: 2}"), {"algorithm.credit.gamma", "algorithm.trust"}),
        (("credit={kind: gae, lamb: 1}",), {"algorithm.credit.lamb", "algorithm.baseline", "algorithm.value"}),
        (
            ("name=kimi", TWO, "reduction={kind: token_mean, budget: 3}"),
            {"algorithm.reduction", "algorithm.reduction.kind"},
        ),
        # Of what has no right value nothing is said.
        (("baseline={kind: other_mean}", "quorum=1", "rollout.group_size=1", ALONE[2]), {"algorithm.baseline.kind"}),
        (("baseline=others_mean", "quorum=1", "rollout.group_size=1", ALONE[2]), {"algorithm.baseline"}),
        (("name=ppo", TWO, "credit={kind: vtrace}", "trust={knd: none}"), {"algorithm.trust.knd"}),
        (("name=ppo", TWO, "credit={kind: vtrace}", "truts={kind: none}"), {"algorithm.truts"}),
        (("name=ppo", TWO, "credit={kind: vtrace}", "truts.kind=none"), {"algorithm.truts.kind"}),
        (("name=cispo", "trust={max_weight: 2}"), {"algorithm.trust.max_weight"}),
        (("quorum=9", "rollout.group_size=twelve"), {"rollout.group_size"}),
        (("quorum=9", "rollout.grup_size=12"), {"rollout.grup_size"}),
        (("name=decoupled_ppo", "trust.max_wieght=5"), {"algorithm.trust.max_wieght"}),
        (("name=kimi", "learner.mini_batches=0"), {"learner.mini_batches"}),
        # Everything else is said in the same round.
        (
            ("baseline={kind: other_mean}", "quorum=9", "whitening.over=tokens", "value={kind: own}"),
            {"algorithm.baseline.kind", "algorithm.quorum", "algorithm.whitening.over", "algorithm.value"},
        ),
        (("name=kimi", "kl.coefficient=-1"), {"algorithm.kl.coefficient", "algorithm.objective"}),
        (
            ("name=cispo", "kl.controller={kind: doubling}", "trust.kind=masked_is"),
            {"algorithm.kl.controller.target", "algorithm.trust"},
        ),
        (
            ("name=cispoo", "credit={kind: vtrace}", "trust={kind: masked_is}", "quorum=9"),
            {"algorithm.name", "algorithm.trust", "algorithm.quorum"},
        ),
        (("quorum=1", "limits.steps=many"), {"limits.steps", "algorithm.quorum"}),
    ],
)
def test_what_is_wrong_in_form_hides_no_contradiction_and_makes_none_up(
    place: Path, overrides: tuple[str, ...], keys: set[str]
) -> None:
    known = [each if each.startswith("limits.") else full((each,))[0] for each in overrides]
    assert set(check_overridden(place, *known)) == keys
