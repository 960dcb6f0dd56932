"""PNG plots of a run's metrics, and one learning curve over several runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from penstock.services.metrics import read_rows
from penstock.services.rundir import RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, float]]

# Okabe and Ito's palette: told apart also by people who see few colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
_STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
}


@dataclass(frozen=True)
class Line:
    """One metric in a plot."""

    metric: str
    label: str
    style: Literal["smooth", "points", "steps", "bound"] = "smooth"
    """smooth: the values pale, their running mean strong. points: with markers, as it is measured now and then.
    steps: as recorded, since a mean of maxima means nothing. bound: a dashed limit."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    from_zero: bool = True
    ceiling: float | None = None
    """Upper end of the axis where the quantity has one, such as a share of 1."""
    decades: bool = False
    """A logarithmic axis, for what spans powers of ten."""


@dataclass(frozen=True)
class Plot:
    """One PNG file: panels side by side."""

    name: str
    panels: tuple[Panel, ...]


_BUCKETS = {
    "lag_0": "lag 0",
    "lag_1": "lag 1",
    "lag_2": "lag 2",
    "lag_3_4": "lag 3 to 4",
    "lag_5_8": "lag 5 to 8",
    "lag_9_up": "lag 9 and more",
    "older_kv": "on an older cache",
}

PLOTS = (
    Plot(
        "reward",
        (
            Panel(
                "Reward",
                "reward per answer",
                (Line("reward/mean", "training"), Line("eval/sampled/reward", "held-out, sampled", "points")),
                from_zero=False,
            ),
            Panel(
                "Accuracy",
                "share of answers",
                (
                    Line("reward/solved", "training, sampled"),
                    Line("eval/sampled/accuracy", "held-out, sampled", "points"),
                    Line("eval/greedy/accuracy", "held-out, greedy", "points"),
                ),
                ceiling=1.0,
            ),
        ),
    ),
    Plot(
        "lag",
        (
            Panel(
                "Staleness of trained tokens",
                "lag in train steps",
                (
                    Line("off_policy/mean", "mean"),
                    Line("off_policy/max", "maximum", "steps"),
                    Line("off_policy/bound", "bound (max_lag)", "bound"),
                ),
            ),
        ),
    ),
    Plot(
        "staleness",
        (
            Panel(
                "Effective sample size by lag",
                "share of the bucket's tokens",
                tuple(Line(f"rollout_corr/{bucket}/ess", label) for bucket, label in _BUCKETS.items()),
                ceiling=1.0,
            ),
            Panel(
                "Divergence from the sampler by lag",
                "nats per token (k3)",
                tuple(Line(f"kl/offpolicy/{bucket}/k3", label) for bucket, label in _BUCKETS.items()),
                decades=True,
            ),
        ),
    ),
    Plot(
        "kl",
        (
            Panel(
                "Divergence",
                "nats per token",
                (
                    Line("kl/reference", "from the reference"),
                    Line("kl/update", "since the step's start, at its updates"),
                    Line("kl/offpolicy", "from the sampler"),
                ),
                from_zero=False,
            ),
            Panel(
                "Where it comes from, audited",
                "nats per token (k3)",
                (
                    Line("kl/update_audited", "the whole step", "points"),
                    Line("kl/staleness", "staleness", "points"),
                    Line("kl/mismatch", "mismatch", "points"),
                ),
                decades=True,
            ),
            Panel("Entropy", "nats per token", (Line("actor/entropy", "policy"),)),
        ),
    ),
    Plot(
        "throughput",
        (
            Panel(
                "Throughput",
                "tokens per second",
                (
                    Line("rollout/tokens_per_second", "rollout (generated)"),
                    Line("learner/tokens_per_second", "learner (trained)"),
                ),
            ),
        ),
    ),
    Plot(
        "lengths",
        (
            Panel(
                "Length of answers",
                "tokens",
                (Line("response/length_mean", "mean"), Line("response/length_max", "maximum", "steps")),
            ),
            Panel("Cut at the limit", "share of answers", (Line("response/clipped", "cut"),), ceiling=1.0),
        ),
    ),
)


def write_plots(run: RunDir, plots: Sequence[Plot] = PLOTS) -> list[Path]:
    """Draw into the run's plots/ whatever was recorded; returns the files written. Panels without data are left out."""
    rows, firings = read_rows(run.metrics), _firings(run)
    written = []
    for plot in plots:
        panels = [panel for panel in plot.panels if any(_series(rows, line.metric)[0] for line in panel.lines)]
        if panels:
            with picture(run.plots / f"{plot.name}.png", len(panels), (6.4 * len(panels), 4.0)) as axes:
                for ax, panel in zip(axes, panels, strict=True):
                    _draw(ax, panel, rows, firings)
            written.append(run.plots / f"{plot.name}.png")
    return written


def learning_curve(
    runs: Sequence[RunDir],
    out: Path,
    metrics: Mapping[str, str] | None = None,
    over: Literal["step", "minutes"] = "step",
) -> Path:
    """One PNG over several runs (seeds) of the same recipe: mean as a line, lowest to highest as a band.

    `metrics` are names with labels, by default held-out accuracy sampled and greedy; `over` is `step`, or
    `minutes` since each run's first line.
    """
    metrics = metrics or {
        "eval/sampled/accuracy": "sampled (temperature 1)",
        "eval/greedy/accuracy": "greedy",
    }
    tables = [read_rows(run.metrics) for run in runs]
    with picture(out, 1, (7.5, 4.5)) as (ax,):
        for colour, (name, label) in zip(COLOURS, metrics.items(), strict=False):
            curves = [_series(rows, name, over) for rows in tables]
            band(ax, [curve for curve in curves if curve[0]], colour, label)
        many = f", {len(runs)} seeds: mean, lowest to highest" if len(runs) > 1 else ""
        ax.set_title(f"Accuracy on held-out prompts{many}")
        ax.set_xlabel("train step" if over == "step" else "minutes of training")
        ax.set_ylabel("share of right answers")
        ax.set_ylim(0, 1.02)
        ax.set_xlim(left=0)
        ax.legend(loc="lower right")
    return out


def _series(rows: Rows, metric: str, over: str = "step") -> tuple[list[float], list[float]]:
    """Where `metric` was recorded as a finite number, and its values."""
    kept = [row for row in rows if metric in row and math.isfinite(row[metric])]
    if over == "step":
        return [row["step"] for row in kept], [row[metric] for row in kept]
    began = rows[0]["time"] if rows else 0.0
    return [(row["time"] - began) / 60 for row in kept], [row[metric] for row in kept]


@contextmanager
def picture(path: Path, panels: int, size: tuple[float, float]) -> Iterator[list[Axes]]:
    """Axes to draw on, side by side, written to `path` afterwards."""
    # Without pyplot there is no global list of figures and no display: safe in any thread of the driver.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield [figure.add_subplot(1, panels, n + 1) for n in range(panels)]
        path.parent.mkdir(parents=True, exist_ok=True)
        # The metadata names no version, so that the same numbers give the same file.
        figure.savefig(path, metadata={"Software": "penstock"})


def _firings(run: RunDir) -> list[float]:
    """Steps at which a guard has fired. One that is exhausted has not."""
    guards = (event.facts for event in run.read_events() if event.kind == "guard")
    return sorted({float(facts["step"]) for facts in guards if facts.get("what") != "exhausted"})


def _draw(ax: Axes, panel: Panel, rows: Rows, firings: Sequence[float] = ()) -> None:
    for step in firings:
        ax.axvline(step, color="#999999", linestyle=":", linewidth=1.2, zorder=1)
    for colour, line in zip(COLOURS, panel.lines, strict=False):
        steps, values = _series(rows, line.metric)
        if steps:
            _draw_line(ax, line, colour, steps, values)
    ax.set_title(panel.title)
    ax.set_xlabel("train step")
    ax.set_ylabel(panel.unit)
    if panel.decades:
        ax.set_yscale("log", nonpositive="mask")
    elif panel.from_zero:
        ax.set_ylim(bottom=0)
    if panel.ceiling is not None:
        ax.set_ylim(0, panel.ceiling * 1.02)
    shown = len(ax.get_legend_handles_labels()[1])
    if shown > 1:
        # Beside the axes where it would hide the lines.
        ax.legend(**{"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if shown > 4 else {})
    elif len(panel.lines) > 1:
        ax.set_title(f"{panel.title}: {ax.get_legend_handles_labels()[1][0]}")


def _draw_line(ax: Axes, line: Line, colour: str, steps: list[float], values: list[float]) -> None:
    if line.style == "bound":
        ax.plot(steps, values, color="#555555", linestyle="--", linewidth=1.5, label=line.label)
    elif line.style == "steps":
        ax.plot(steps, values, color=colour, linewidth=1.2, drawstyle="steps-mid", label=line.label)
    elif line.style == "points" or len(steps) < 3:
        ax.plot(steps, values, color=colour, marker="o", markersize=5, linewidth=2, label=line.label)
    else:
        ax.plot(steps, values, color=colour, linewidth=1, alpha=0.3)
        ax.plot(steps, _smooth(values), color=colour, linewidth=2, label=line.label)


def _smooth(values: Sequence[float]) -> list[float]:
    """Running mean over a tenth of the run, at most 15 steps; narrower but still centred towards the ends."""
    half = min(7, len(values) // 20)
    reach = [min(half, n, len(values) - 1 - n) for n in range(len(values))]
    return [sum(values[n - r : n + r + 1]) / (2 * r + 1) for n, r in enumerate(reach)]


def band(ax: Axes, curves: Sequence[tuple[list[float], list[float]]], colour: str, label: str) -> None:
    """Mean and spread on the common part of the axis; curves measured at other places are interpolated."""
    import numpy as np

    if not curves:
        return
    end = min(xs[-1] for xs, _ in curves)
    grid: Any = np.unique(np.concatenate([np.asarray(xs) for xs, _ in curves]))
    grid = grid[grid <= end]
    values = np.stack([np.interp(grid, xs, ys) for xs, ys in curves])
    if len(curves) > 1:
        ax.fill_between(grid, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)
    ax.plot(grid, values.mean(axis=0), color=colour, marker="o", markersize=4, linewidth=2, label=label)
