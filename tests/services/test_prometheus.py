"""Names, labels and help texts for Prometheus."""

from __future__ import annotations

import re

import pytest

from penstock.deploy.catalogue import exported
from penstock.services.metrics import Metric, MetricError, find, merge, places, to_prometheus
from penstock.services.prometheus import LABELS, Series, help_text, series, table


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("off_policy/mean", "penstock_off_policy_mean"),
        ("kl/offpolicy/k1", "penstock_kl_offpolicy_k1"),
        ("kl/offpolicy/{bucket}/k1", "penstock_kl_offpolicy_k1_by_bucket"),
        ("ledger/{state}", "penstock_ledger_by_state"),
        ("dropped/{reason}", "penstock_dropped_by_reason"),
        ("reward/part/{name}", "penstock_reward_part_by_name"),
        ("guard/{name}/fired", "penstock_guard_fired_by_name"),
        ("a/{one}/b/{two}", "penstock_a_b_by_one_two"),
    ],
)
def test_places_to_fill_in_leave_the_name_and_are_said_at_its_end(pattern: str, name: str) -> None:
    assert to_prometheus(pattern) == name


def test_what_fills_a_place_becomes_a_label() -> None:
    catalogue = merge({"learner": {"kl/offpolicy/{bucket}/k1": Metric("h"), "kl/offpolicy/k1": Metric("h")}})
    assert series("kl/offpolicy/lag_3_4/k1", catalogue) == Series(
        "penstock_kl_offpolicy_k1_by_bucket", {"bucket": "lag_3_4"}, "h"
    )
    assert series("kl/offpolicy/k1", catalogue) == Series("penstock_kl_offpolicy_k1", {}, "h")


def test_two_places_become_two_labels() -> None:
    catalogue = merge({"x": {"guard/{name}/{what}": Metric("h")}})
    assert series("guard/kl-1/fired", catalogue).labels == {"name": "kl-1", "what": "fired"}


def test_an_entry_by_its_name_comes_before_one_with_places() -> None:
    catalogue = merge({"x": {"ledger/{state}": Metric("a state"), "ledger/payload_bytes": Metric("bytes")}})
    found = find("ledger/payload_bytes", catalogue)
    assert found is not None
    assert found.metric.help == "bytes"
    assert find("ledger/refused/unscored", catalogue) is None, "a place holds one part of a name"


def test_names_that_nobody_declared_share_one_with_a_label() -> None:
    found = series("mine/Loss-2", {})
    assert (found.name, found.labels) == ("penstock_other_by_name", {"name": "mine/Loss-2"})
    assert "penstock_other_by_name" not in {to_prometheus(pattern) for pattern in exported()}


def test_a_metric_over_all_and_by_a_place_that_prometheus_could_not_tell_apart_are_refused() -> None:
    with pytest.raises(MetricError, match="same Prometheus name penstock_a_b_by_c"):
        merge({"x": {"a/b/{c}": Metric("h"), "a/b_by_c": Metric("h")}})


def test_help_says_unit_estimator_and_direction_in_ascii() -> None:
    metric = Metric("KL(μ‖π_prox), 1 − β²", "nat", "down", "k3, tokens from μ")
    assert help_text(metric) == ("KL(mu||pi_prox), 1 - beta^2; unit: nat; estimator: k3, tokens from mu; better: down")


def test_no_help_of_the_catalogue_has_a_sign_that_ascii_has_no_word_for() -> None:
    assert [name for name, metric in exported().items() if "?" in help_text(metric)] == []


def test_every_exported_name_and_label_is_one_that_prometheus_takes() -> None:
    for pattern in exported():
        assert re.fullmatch(r"penstock_[a-z0-9_]*[a-z0-9]", to_prometheus(pattern)), pattern
        for place in places(pattern):
            assert re.fullmatch(r"[a-z][a-z_]*", place)
            assert place not in LABELS, f"{pattern}: {place} is a label of the process that exports it"


def test_the_table_has_a_line_for_every_metric() -> None:
    lines = table({"b/{c}": Metric("of | b", "s", "down", "k1"), "a/x": Metric("of a", good="up")}).splitlines()
    assert lines[2:] == [
        "| `a/x` | of a |  | ↑ |  | `ray_penstock_a_x` |",
        r"| `b/{c}` | of \| b | s | ↓ | k1 | `ray_penstock_b_by_c` by `c` |",
    ]
