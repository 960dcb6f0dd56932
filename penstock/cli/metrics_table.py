"""Metrics on the terminal."""

from __future__ import annotations

import difflib

from penstock.deploy.catalogue import exported
from penstock.services.contracts import PenstockError
from penstock.services.metrics import Metric, find, to_prometheus
from penstock.services.prometheus import SCRAPED


def plain(prefix: str) -> str:
    """Two lines for every metric whose name begins with `prefix`, or that `prefix` is a value of.

    Raises PenstockError, with the nearest name, when there is none.
    """
    known = exported()
    names = [name for name in sorted(known) if name.startswith(prefix)]
    if not names and (found := find(prefix, known)) is not None:
        names = [found.pattern]
    if not names:
        close = difflib.get_close_matches(prefix, known, n=1, cutoff=0.5)
        nearest = f"; nearest: {close[0]}" if close else ""
        raise PenstockError(f"no metric is called {prefix}, and no name begins so{nearest}")
    return "\n".join(_entry(name, known[name]) for name in names)


def _entry(name: str, metric: Metric) -> str:
    unit = f" [{metric.unit}]" if metric.unit else ""
    better = {"up": "; more is better", "down": "; less is better", "neither": ""}[metric.good]
    estimator = f"; {metric.estimator}" if metric.estimator else ""
    return f"{name}{unit}  {SCRAPED}{to_prometheus(name)}\n    {metric.help}{estimator}{better}"
