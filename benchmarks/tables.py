"""Tables and figures of measurements, written into docs/ where a page marks their place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Curve = tuple[list[float], list[float]]
"""Where something was measured, and what."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [list(head), ["---"] * len(head), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def between_marks(page: Path, name: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Put a table between `<!-- NAME -->` and `<!-- /NAME -->` of a page. Raises ValueError where that is missing."""
    text = page.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no place marked by {begin} and {end}")
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text(f"{before}{begin}\n{table(head, rows)}{end}{after}")


def figure(
    file: Path, panels: Mapping[str, Mapping[str, Sequence[Curve]]], x: str, y: str, across: int = 3, ceiling: float = 1
) -> None:
    """Small multiples: panel → line → one curve per seed; drawn as their mean, with a band from lowest to highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from penstock.services.plots import COLOURS, band

    down = math.ceil(len(panels) / across)
    made, axes = pyplot.subplots(
        down, across, figsize=(4.3 * across, 3.2 * down), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        for colour, (label, curves) in zip(COLOURS, lines.items(), strict=False):
            end = max(xs[-1] for xs, _ in curves)
            band(ax, [_to(end, curve) for curve in curves], colour, label)
        ax.set(title=title, xlabel=x, ylabel=y, ylim=(0, ceiling * 1.02))
        ax.grid(alpha=0.3)
        ax.tick_params(labelbottom=True, labelleft=True)
    axes.flat[0].legend(loc="lower right", fontsize="small")
    made.savefig(file, dpi=110, metadata={"Software": "penstock"})
    pyplot.close(made)


def _to(end: float, curve: Curve) -> Curve:
    """The curve up to `end`: a run that broke down early stays where it fell."""
    xs, ys = curve
    return (xs, ys) if xs[-1] >= end else ([*xs, end], [*ys, ys[-1]])
