"""Variants of an algorithm from short texts: what they change, what they leave, and what they refuse."""

from __future__ import annotations

import pytest

from penstock.learner.algorithms.loss_cells import CISPO, MaskedIS, SequenceIS, TruncatedIS
from penstock.learner.config import AlgorithmSection
from penstock.learner.variants import OWN_CORRECTIONS, VariantError, defaults, of_own, of_row

OWN = AlgorithmSection.model_validate(
    {"name": "grpo", "trust": {"max_weight": 4.0}, "kl": {"coefficient": 0.1, "estimator": "k2"}}
)


def test_a_row_begins_from_the_table_and_not_from_the_run():
    section = of_row("cispo objective.max_weight=3", longest=6).section
    assert section.objective == CISPO(max_weight=3.0)
    assert section.kl.coefficient == 0


def test_a_fixed_length_gets_the_runs_budget():
    assert of_row("dr_grpo", longest=77).section.reduction.budget == 77


def test_a_change_keeps_every_other_key_of_the_run():
    section = of_own("trust.max_weight=3 kl.controller.kind=doubling kl.controller.target=0.02", OWN, 6).section
    assert section.trust == TruncatedIS(max_weight=3.0)
    assert (section.kl.coefficient, section.kl.estimator) == (0.1, "k2")
    assert (section.kl.controller.kind, section.kl.controller.target) == ("doubling", 0.02)
    assert section.model_dump(exclude={"trust", "kl"}) == OWN.model_dump(exclude={"trust", "kl"})


def test_another_kind_begins_from_its_own_defaults():
    assert of_own("trust.kind=masked_is", OWN, 6).section.trust == MaskedIS()
    assert of_own("trust.kind=sequence_is trust.aggregate=geometric_mean", OWN, 6).section.trust == SequenceIS(
        aggregate="geometric_mean"
    )


def test_the_name_of_the_section_may_stand_before_a_cell():
    assert of_own("algorithm.trust.max_weight=3", OWN, 6).section == of_own("trust.max_weight=3", OWN, 6).section


def test_what_is_tried_without_a_word_has_a_label_each():
    labels = [variant.label for variant in defaults(OWN, 6)]
    assert len(labels) == len(set(labels))
    assert set(OWN_CORRECTIONS) < set(labels)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trust.knd=none", r"trust.*knd.*not permitted"),
        ("rust.kind=none", "no such cell; did you mean trust"),
        ("trust.max_weight=0.5", "greater than or equal to 1"),
        ("trust.kind=masked", "masked_is"),
        ("max_weight", r"no CELL\.KEY=VALUE, for example trust\.max_weight=3"),
        ("trust..max_weight=3", r"no CELL\.KEY=VALUE"),
        ("trust.max_weight=[1", "is not YAML"),
        ("kl.estimator=k1", "expected gradient of zero"),
    ],
)
def test_a_change_that_cannot_be_says_why(text, said):
    with pytest.raises(VariantError, match=said):
        of_own(text, OWN, 6)


def test_a_row_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(VariantError, match=r"--row 'cisp'.*did you mean 'cispo'"):
        of_row("cisp", 6)
    with pytest.raises(VariantError, match="no_such_module"):
        of_row("no_such_module:ROW", 6)
    with pytest.raises(VariantError, match=r"--row ' ' names no row; there are .*cispo"):
        of_row(" ", 6)
