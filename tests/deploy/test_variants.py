"""Variants of an algorithm from short texts: what they change, what they leave, and what they refuse."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from penstock.deploy.variants import OWN_CORRECTIONS, asked, defaults, of_own, of_row
from penstock.learner.algorithms import table
from penstock.learner.algorithms.judging import Sizes
from penstock.learner.algorithms.loss_cells import CISPO, MaskedIS, SequenceIS, TruncatedIS
from penstock.learner.config import AlgorithmSection
from penstock.learner.variants import VariantError

OWN = AlgorithmSection.model_validate(
    {"name": "grpo", "trust": {"max_weight": 4.0}, "kl": {"coefficient": 0.1, "estimator": "k2"}}
)
SIZES = Sizes(group_size=8, groups_per_step=4, updates=1, max_tokens=6)


def changed(text: str) -> AlgorithmSection:
    """The run's own section with the changes in `text`."""
    return of_own(text, OWN, SIZES).section


def refusal(*, rows: tuple[str, ...] = (), sets: tuple[str, ...] = ()) -> str:
    with pytest.raises(VariantError) as caught:
        asked(rows, sets, OWN, SIZES)
    return str(caught.value)


def tells(told: str, head: str, said: str) -> None:
    assert told.startswith(head)
    assert said in told
    assert "\n" not in told


def test_a_row_begins_from_the_table_and_not_from_the_run() -> None:
    section = of_row("cispo objective.max_weight=3", OWN, SIZES).section
    assert section.objective == CISPO(max_weight=3.0)
    assert section.kl.coefficient == 0


def test_a_fixed_length_gets_the_runs_budget() -> None:
    sizes = Sizes(group_size=8, groups_per_step=4, updates=1, max_tokens=77)
    assert of_row("dr_grpo", OWN, sizes).section.reduction.budget == 77


def test_a_change_keeps_every_other_key_of_the_run() -> None:
    section = changed("trust.max_weight=3 kl.controller.kind=doubling kl.controller.target=0.02")
    assert section.trust == TruncatedIS(max_weight=3.0)
    assert (section.kl.coefficient, section.kl.estimator) == (0.1, "k2")
    assert (section.kl.controller.kind, section.kl.controller.target) == ("doubling", 0.02)
    assert section.model_dump(exclude={"trust", "kl"}) == OWN.model_dump(exclude={"trust", "kl"})


def test_another_kind_begins_from_its_own_defaults() -> None:
    assert changed("trust.kind=masked_is").trust == MaskedIS()
    assert changed("trust.kind=sequence_is trust.aggregate=geometric_mean").trust == SequenceIS(
        aggregate="geometric_mean"
    )


def test_a_cell_may_be_written_as_in_a_run_file() -> None:
    section = changed("trust={kind: masked_is, max_weight: 3}  kl.coefficient=0")
    assert (section.trust, section.kl.coefficient) == (MaskedIS(max_weight=3.0), 0)


def test_the_name_of_the_section_may_stand_before_a_cell() -> None:
    assert changed("algorithm.trust.max_weight=3") == changed("trust.max_weight=3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "trust.knd=none",
            "--set 'trust.knd=none': error: trust.knd: truncated_is has no such key; allowed: kind, max_weight; did "
            "you mean trust.kind?",
        ),
        (
            "trust.max_weight=0.5",
            "--set 'trust.max_weight=0.5': error: trust.max_weight: has a value that does not fit; found 0.5; "
            "allowed: 1 or more",
        ),
        (
            "trust.kind=masked",
            "--set 'trust.kind=masked': error: trust.kind: is not one of the choices; found 'masked'; allowed: 'none', "
            "'truncated_is', 'masked_is', 'sequence_is', 'decoupled'; did you mean 'masked_is'?",
        ),
        ("rust.kind=none", "rust.kind: there is no such key; allowed: baseline, credit"),
        ("rust.kind=none", "did you mean trust.kind?"),
        ("learner.epochs=2", "learner.epochs: there is no such key; allowed: baseline, credit"),
        ("trust=masked_is", "found 'masked_is'; allowed: a mapping of keys to values; did you mean trust: {kind: mas"),
        ("objective.max_weight=3", "it belongs to kind 'cispo': set objective.kind too"),
        ("max_weight", "max_weight: is no change; allowed: CELL.KEY=VALUE, as trust.max_weight=3"),
        (
            "cispo",
            "cispo: is no change; allowed: CELL.KEY=VALUE, as trust.max_weight=3; for the row of that name: --row",
        ),
        ("name=cispo", "name: a row is chosen with --row; found name=cispo"),
        ("trust.max_weight=[1", "trust.max_weight: not a YAML value: '[1'"),
        ("kl.estimator=k1", "kl: k1 in the loss has an expected gradient of zero"),
        ("group_filter=none", "found 'none'; allowed: 'signal' or 'all'"),
    ],
)
def test_a_change_that_cannot_be_is_told_as_check_tells_it(text: str, said: str) -> None:
    tells(refusal(sets=(text,)), f"--set {text!r}: error: ", said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cisp", "name: no algorithm is called 'cisp'; did you mean 'cispo'?; there are ppo, "),
        ("no_such_module:ROW", "name: there is no module 'no_such_module' in "),
        (" ", "name: is no row; found ''; allowed: ppo, "),
        ("trust.kind=none", "changes to the run's own row are given with --set"),
        ("cispo objective.max_wieght=3", "did you mean objective.max_weight?"),
    ],
)
def test_a_row_that_cannot_be_is_told_as_check_tells_it(text: str, said: str) -> None:
    tells(refusal(rows=(text,)), f"--row {text!r}: error: ", said)


def test_all_mistakes_in_all_texts_are_told_at_once() -> None:
    told = refusal(rows=("cisp", "grpo"), sets=("trust.knd=none trust.kind=masked", "quorum=0")).splitlines()
    assert [line.split(": ")[0] for line in told] == [
        "--row 'cisp'",
        "--set 'trust.knd=none trust.kind=masked'",
        "--set 'quorum=0'",
    ]


def test_a_row_of_ones_own_is_looked_for_beside_the_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    code = "from dataclasses import replace\nfrom penstock.algorithms import find\n"
    (tmp_path / "rows_beside.py").write_text(code + "ROW = replace(find('cispo'), name='mine')\n")
    own = OWN.model_copy(update={"folder": str(tmp_path)})
    try:
        section = of_row("rows_beside:ROW objective.max_weight=3", own, SIZES).section
        with pytest.raises(VariantError, match=r"did you mean 'rows_beside'"):
            of_row("row_beside:ROW", own, SIZES)
    finally:
        sys.modules.pop("rows_beside", None)
    assert (section.name, section.objective) == ("rows_beside:ROW", CISPO(max_weight=3.0))


def test_what_is_asked_for_and_contradicts_itself_is_refused_in_full() -> None:
    (variant,) = asked(["cispo trust.kind=truncated_is"], [], OWN, SIZES).variants
    assert variant.reason == (
        "error: algorithm.trust: the objective cispo holds π/μ already, and truncated_is would multiply it twice; "
        "found {kind: 'truncated_is'}; allowed: none; algorithm.trust: {kind: none}"
    )


def test_what_is_asked_for_twice_is_tried_once() -> None:
    assert [each.label for each in asked(["cispo", "cispo"], [], OWN, SIZES).variants] == ["cispo"]


def test_what_is_tried_without_a_word_has_a_label_each() -> None:
    variants, notes = defaults(OWN, SIZES)
    labels = [variant.label for variant in variants]
    assert len(labels) == len(set(labels))
    assert labels == [*sorted(table.rows()), *OWN_CORRECTIONS]
    assert notes == []


def test_without_a_word_only_what_fits_the_run_is_tried_and_one_line_names_the_rest() -> None:
    cispo = AlgorithmSection(name="cispo")
    variants, notes = asked([], [], cispo, SIZES)
    labels = {variant.label for variant in variants}
    assert {"trust.kind=none", "reject.kind=second_moment", *table.rows()} == labels - {
        "reject.kind=off_policy_sequence"
    }
    assert notes == [
        "left out, since they do not fit this run (--row or --set says why): trust.kind=truncated_is, "
        "trust.kind=masked_is, trust.kind=sequence_is, trust.kind=decoupled"
    ]


def test_rows_that_groups_of_one_answer_do_not_fit_are_left_out() -> None:
    sizes = Sizes(group_size=1, groups_per_step=4, updates=1, max_tokens=6)
    variants, notes = asked([], [], AlgorithmSection(name="ppo"), sizes)
    labels = {variant.label for variant in variants}
    assert labels & set(table.rows()) == {"ppo", "ppo_kl", "a2c", "reinforce", "decoupled_ppo"}
    assert "grpo" in notes[0] and len(notes) == 1
