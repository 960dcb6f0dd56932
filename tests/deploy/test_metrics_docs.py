"""The page of all metrics."""

from __future__ import annotations

from pathlib import Path

from penstock.deploy.catalogue import exported
from penstock.deploy.metrics_docs import markdown


def test_the_page_of_metrics_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.read_text() == markdown(), "make it anew: penstock metrics --markdown > docs/metrics.md"


def test_every_exported_metric_is_on_it_once() -> None:
    lines = markdown().splitlines()
    for name in exported():
        assert sum(line.startswith(f"| `{name}` |") for line in lines) == 1, name
