"""The page of all metrics."""

from __future__ import annotations

import re
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


def test_a_unit_has_one_spelling_and_what_is_counted_or_timed_has_one() -> None:
    counted = {"answers", "events", "firings", "groups", "processes", "scorers", "steps", "swaps", "tokens", "updates"}
    assert {m.unit for m in exported().values()} <= counted | {"", "workers", "bytes", "nat", "s", "unix s", "tokens/s"}
    for name, metric in exported().items():
        if re.search(r"(_|/)(seconds|tokens|groups|bytes|updates|per_second)$|^(event|guard|time)/", name):
            assert metric.unit, name
