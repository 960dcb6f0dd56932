"""`penstock whatif`: a run directory's archived steps under other algorithms, written down and drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from penstock.deploy.runfile import load
from penstock.deploy.variants import asked
from penstock.services.bar_plots import Bars, bars
from penstock.services.files import write_atomically
from penstock.services.rundir import RunDir

if TYPE_CHECKING:
    from penstock.learner.whatif import At, Comparison

_CUT = ("actor/pg_clipfrac_low", "actor/pg_clipfrac_high", "rollout_corr/left_out")


def whatif(
    directory: RunDir,
    rows: Sequence[str],
    sets: Sequence[str],
    at: At,
    newest: int | None,
    progress: Callable[[int, int, str], None],
) -> Comparison:
    """Compare, and leave whatif.json and plots/whatif.png in the run directory; `rows` and `sets` as in
    `variants.asked`. Raises what `compare` raises."""
    from penstock.learner.whatif import compare

    model = load(directory.config).model
    comparison = compare(directory.path, directory.archive, model, partial(asked, rows, sets), at, newest, progress)
    write_atomically(directory.whatif, json.dumps(comparison.to_json(), indent=1, allow_nan=False).encode() + b"\n")
    _draw(comparison, directory)
    return comparison


def _draw(comparison: Comparison, directory: RunDir) -> None:
    rows = [row for row in comparison.rows if not row.reason]
    own = rows[0]

    def panel(title: str, unit: str, metric: str, baseline: float | None = None, ceiling: float | None = None) -> Bars:
        means, spreads = [row.mean(metric) for row in rows], [row.spread(metric) for row in rows]
        return Bars(title, unit, means, spreads, baseline, ceiling)

    cut = [sum(max(0.0, step.get(name, 0.0)) for step in row.steps for name in _CUT) / len(row.steps) for row in rows]
    panels = (
        panel("Gradient", "norm", "grad_norm", own.mean("grad_norm")),
        panel("Direction", "cosine to the run's own", "cosine", ceiling=1.0),
        panel("Effective sample size", "share of tokens", "whatif/ess", ceiling=1.0),
        Bars("Cut by a bound or left out", "share of tokens", cut, [float("nan")] * len(rows)),
    )
    steps = len(comparison.steps)
    where = "started from" if comparison.at == "start" else "led to"
    note = f"{steps} archived steps, at the weights that each {where}; whiskers: one standard deviation over the steps"
    bars(directory.plots / "whatif.png", [row.label for row in rows], panels, note)
