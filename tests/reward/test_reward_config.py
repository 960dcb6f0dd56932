"""The section of a run file that says how answers are judged."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from penstock.reward.config import RewardSection, RuleSection
from penstock.services.metrics import check_name


def test_a_rule_in_place_of_a_name_is_refused_with_the_remedy():
    with pytest.raises(ValidationError, match=r'rules: \{exactness: \{rule: "my_rewards:exactness"\}\}'):
        RewardSection(rules={"my_rewards:exactness": RuleSection()})


@pytest.mark.parametrize("name", ["kl", "exact", "Style-2", "v1.0", "a_b"])
def test_the_name_of_a_part_fits_into_the_names_of_metrics(name):
    RewardSection(rules={name: RuleSection(rule="exact")})
    check_name(f"reward/part/{name}")
    check_name(f"scorer/failed/{name}")


@pytest.mark.parametrize("name", ["", "a/b", "a b", "größe", "-a"])
def test_other_names_are_refused(name):
    with pytest.raises(ValidationError, match="give the part a plain name"):
        RewardSection(rules={name: RuleSection(rule="exact")})
