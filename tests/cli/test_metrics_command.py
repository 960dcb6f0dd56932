"""`penstock metrics`."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from penstock.cli.main import app


def call(*arguments: str):
    return CliRunner().invoke(app, ["metrics", *arguments])


def test_a_metric_is_told_with_unit_direction_estimator_and_prometheus_name() -> None:
    done = call("kl/offpolicy/k1")
    assert done.exit_code == 0
    assert done.output.startswith("kl/offpolicy/k1 [nat]  ray_penstock_kl_offpolicy_k1\n")
    assert done.output.rstrip().endswith("k1, tokens from μ; less is better")


def test_the_beginning_of_names_finds_all_of_them_and_nothing_all_there_are() -> None:
    names = [line.split()[0] for line in call("off_policy/").output.splitlines() if not line.startswith(" ")]
    assert names == sorted(names)
    assert {"off_policy/mean", "off_policy/{bucket}/tokens"} <= set(names)
    assert all(name.startswith("off_policy/") for name in names)
    assert call().output.count("ray_penstock_") > 100


def test_a_name_with_its_places_filled_finds_its_entry() -> None:
    assert call("ledger/stored").output.startswith("ledger/{state} [groups]")


@pytest.mark.parametrize(("name", "nearest"), [("kl/referense", "kl/reference"), ("nothing-like-it", "")])
def test_an_unknown_name_is_a_mistake_with_the_nearest(name: str, nearest: str) -> None:
    done = call(name)
    assert done.exit_code == 2
    assert f"no metric is called {name}" in done.output
    assert (f"nearest: {nearest}" in done.output) == bool(nearest)
