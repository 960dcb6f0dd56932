"""Every metric as tables for people, made from the catalogues of the roles."""

from __future__ import annotations

from penstock.deploy.catalogue import OWNERS, WATCHED
from penstock.services.prometheus import table

_HEAD = """\
# Metrics

Every number that a run records or exports, from the catalogues beside the roles (`penstock/*/metrics.py` and
`penstock/deploy/catalogue.py`). This page is made by `penstock metrics --markdown > docs/metrics.md`.

**Names.** In metrics.jsonl, in goals, on plots and in trackers a metric has the name of the first column. Prometheus
knows it under the name of the last one: every `/` and other sign becomes `_`, `penstock_` stands before it, and Ray's
`ray_` before that. A part in braces is a place to fill in: in the run's own names `ledger/stored`, in Prometheus a
label, `ray_penstock_ledger_by_state{state="stored"}`. What is also there over all, as `kl/offpolicy/k1` beside
`kl/offpolicy/{bucket}/k1`, has a name without `_by_`, so that a sum over the label counts nothing twice. Metrics of
your own, which no catalogue has, are `ray_penstock_other_by_name`.

**Labels.** `run` is the name of the run directory. What an actor exports itself has `role` (rollout, learner, scorer,
driver) and `worker` too. Ray adds `NodeAddress`, `SessionName`, `WorkerId` and others.

**Kinds.** All are gauges, counts too; a count begins anew when its process does, which `rate` and `increase` know. Ray
keeps a counter's series until its cluster ends, also of workers and runs that are gone, and forgets a gauge that is
not said again: what a worker that left had said is gone after twice the export interval
(`tracking.prometheus_seconds`), or 20 s on a cluster that was there before. Values of a step, an audit or an evaluation
stay what they were until the next one; a bucket of lag that has no tokens any more vanishes.

**Unit** is empty for what has none: shares of 1, weights, rewards, losses, coefficients, 0 or 1.

**Better** says in which direction one wants a metric to move, where there is one.
"""
_SECTIONS = {
    "learner": ("Learner, once per step", ""),
    "rollout": (
        "Rollout workers and evaluations",
        "`rollout/…` in metrics.jsonl are sums over the workers at the time of a step, means of what ends in "
        "`_seconds` and `_share`. To Prometheus each worker exports its own; the sum is `sum by (run) (…)`.",
    ),
    "reward": ("Scorers", "To Prometheus each scorer exports its own."),
    "supervisor": (
        "Driver, recorded at every step",
        "To Prometheus they are what holds at the moment, whether there is a step or not.",
    ),
}


def markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for owner, catalogue in OWNERS.items():
        title, note = _SECTIONS[owner]
        parts.append(f"\n## {title}\n\n" + (f"{note}\n\n" if note else "") + table(catalogue))
    parts.append("\n## Only exported, not recorded\n\n" + table(WATCHED))
    return "".join(parts)
