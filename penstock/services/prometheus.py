"""How a run's metrics are known to Prometheus: names, labels, help texts, and the table of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from penstock.services.metrics import Catalogue, Metric, find, places, to_prometheus

SCRAPED = "ray_"
"""What Ray puts before every name that it exports."""
LABELS = ("run", "role", "worker")
"""Labels that a metric may have beside those that its name asks for."""
OTHER = "penstock_other_by_name"
"""For names that nobody declared: one of its own might be that of a declared one."""
_ASCII = str.maketrans(
    {"π": "pi", "μ": "mu", "β": "beta", "Σ": "sum ", "‖": "||", "²": "^2", "−": "-", "×": "x", "…": "...", "≤": "<="}
)


class Series(NamedTuple):
    """One time series of one process."""

    name: str
    """As Penstock exports it, without Ray's prefix."""
    labels: Mapping[str, str]
    """What its name had in its places; the labels of the process come on top."""
    help: str


def series(name: str, catalogue: Catalogue) -> Series:
    """Where a recorded metric goes. Those that nobody declared, such as a user's own, share one name."""
    found = find(name, catalogue)
    if found is None:
        return Series(OTHER, {"name": name}, "metrics that no catalogue has, by their names")
    return Series(to_prometheus(found.pattern), found.filled, help_text(found.metric))


def help_text(metric: Metric) -> str:
    """Meaning, unit, estimator and direction on one line. Ray takes nothing but ASCII."""
    parts = [metric.help]
    if metric.unit:
        parts.append(f"unit: {metric.unit}")
    if metric.estimator:
        parts.append(f"estimator: {metric.estimator}")
    if metric.good != "neither":
        parts.append(f"better: {metric.good}")
    return "; ".join(parts).translate(_ASCII).encode("ascii", "replace").decode()


def table(catalogue: Catalogue) -> str:
    """All metrics of a catalogue as a table in Markdown, in the order of their names."""
    rows = ["| metric | meaning | unit | better | estimator | Prometheus |", "|---|---|---|---|---|---|"]
    for name, metric in sorted(catalogue.items()):
        by = ", ".join(f"`{place}`" for place in places(name))
        cells = (
            f"`{name}`",
            metric.help,
            metric.unit,
            {"up": "↑", "down": "↓", "neither": ""}[metric.good],
            metric.estimator,
            f"`{SCRAPED}{to_prometheus(name)}`" + (f" by {by}" if by else ""),
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
