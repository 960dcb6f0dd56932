"""Words in which dashboards are described: panels of queries over metrics, which are named as a run names them.

A metric's meaning and unit come from the catalogue, so a panel needs neither; a name that is not in it is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.deploy.catalogue import exported
from penstock.services.metrics import Metric, find, places, to_prometheus
from penstock.services.prometheus import SCRAPED

Kind = Literal["lines", "stack", "share", "stat", "lanes", "table"]


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    expr: str
    legend: str
    metrics: tuple[str, ...]
    """What it asks for, for the panel's description and unit."""


@dataclass(frozen=True)
class Panel:
    """One picture. A row is 24 wide."""

    title: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    width: int = 8
    unit: str = ""
    """Grafana's name of a unit; by default that of the first metric."""
    note: str = ""
    """Said in the description before what the metrics mean."""
    whole: bool = False
    """Numbers are shown without a fraction: how much a count has grown is extrapolated from scrapes."""


@dataclass(frozen=True)
class Board:
    """One dashboard: rows of panels, by title."""

    uid: str
    title: str
    about: str
    rows: dict[str, tuple[Panel, ...]]


def metric(name: str) -> Metric:
    """What the catalogue says. Raises KeyError for a name that it does not have."""
    found = find(name, exported())
    if found is None:
        raise KeyError(f"{name} is no metric; see docs/metrics.md")
    return found.metric


def selected(name: str, **labels: str) -> str:
    """A metric's series of the runs chosen: `ray_penstock_kl_reference{run=~"$run"}`. The value of a label may begin
    with `~`, and is an expression then."""
    metric(name)
    matchers = "".join(
        f', {label}={"~" * value.startswith("~")}"{value.lstrip("~")}"' for label, value in labels.items()
    )
    return f'{SCRAPED}{to_prometheus(name)}{{run=~"$run"{matchers}}}'


def of(name: str, say: str = "", by: str = "", how: str = "max", **labels: str) -> Query:
    """A metric of every run, `how` over the series that it has. `by` are labels to tell apart, by default those of its
    places; `say` is the legend's word beside the run's name."""
    return _query(name, say, by, how, selected(name, **labels))


def rate(name: str, say: str = "", by: str = "", **labels: str) -> Query:
    """How fast a count grows, per second."""
    return _query(name, say, by, "sum", f"rate({selected(name, **labels)}[$__rate_interval])")


def grown(name: str, say: str = "", by: str = "", **labels: str) -> Query:
    """How much a count has grown in the time that is shown."""
    return _query(name, say, by, "sum", f"increase({selected(name, **labels)}[$__range])")


def share_of_time(name: str, say: str = "", by: str = "", **labels: str) -> Query:
    """For how much of the time something that is 0 or 1 was 1."""
    return _query(name, say, by, "avg", f"avg_over_time({selected(name, **labels)}[$__rate_interval])")


def either(one: str, other: str, say: str = "") -> Query:
    """Of two metrics, of which a run has one, that one."""
    first, second = of(one, say), of(other, say)
    return Query(f"{first.expr} or {second.expr}", first.legend, (one, other))


def ask(expr: str, legend: str, *metrics: str) -> Query:
    """A query in Prometheus' own words; `<kl/reference>` stands for the series of that metric."""
    for name in metrics:
        expr = expr.replace(f"<{name}>", selected(name))
    return Query(expr, legend, metrics)


def _query(name: str, say: str, by: str, how: str, series: str) -> Query:
    telling = by.split() or list(places(name))
    legend = " ".join(["{{run}}", *([say] if say else []), *(f"{{{{{label}}}}}" for label in telling)])
    return Query(f"{how} by ({', '.join(['run', *telling])}) ({series})", legend, (name,))
