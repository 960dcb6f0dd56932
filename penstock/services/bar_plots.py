"""PNG plots that compare several things by the same few numbers: one row per thing, one panel per number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.services.plots import COLOURS, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Bars:
    """One panel: a number for every thing that is compared."""

    title: str
    unit: str
    means: Sequence[float]
    """NaN where there is none."""
    spreads: Sequence[float]
    """Drawn as a whisker to both sides; NaN for none."""
    baseline: float | None = None
    """A dashed line, for what the others are compared with."""
    ceiling: float | None = None
    """Upper end of the axis where the quantity has one, such as a share of 1."""


def bars(out: Path, labels: Sequence[str], panels: Sequence[Bars], note: str = "") -> Path:
    """Draw the panels side by side into `out`, the labels from top to bottom at the left; `note` stands below."""
    height = 1.2 + 0.32 * len(labels)
    with picture(out, len(panels), (2.4 + 2.6 * len(panels), height)) as axes:
        for place, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
            _draw(ax, panel, COLOURS[place % len(COLOURS)])
            ax.set_yticks(range(len(labels)), labels if place == 0 else [""] * len(labels))
            ax.set_ylim(len(labels) - 0.4, -0.6)
            ax.grid(visible=False, axis="y")
        if note:
            axes[0].figure.supxlabel(note, fontsize=9, color="#555555")
    return out


def _draw(ax: Axes, panel: Bars, colour: str) -> None:
    places = [i for i, mean in enumerate(panel.means) if math.isfinite(mean)]
    ax.barh(places, [panel.means[i] for i in places], color=colour, alpha=0.75, height=0.65)
    for i in places:
        if math.isfinite(panel.spreads[i]) and panel.spreads[i] > 0:
            mean, spread = panel.means[i], panel.spreads[i]
            ax.plot([mean - spread, mean + spread], [i, i], color="#222222", linewidth=1.2)
    if panel.baseline is not None and math.isfinite(panel.baseline):
        ax.axvline(panel.baseline, color="#555555", linestyle="--", linewidth=1)
    if panel.ceiling is not None:
        ax.set_xlim(min(0.0, *(panel.means[i] for i in places), 0.0), panel.ceiling * 1.02)
    ax.set_title(panel.title)
    ax.set_xlabel(panel.unit)
