"""The table of algorithms for people: on a terminal, in a pipe, in the docs; and one row in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from penstock.learner.algorithms.cells import NoBaseline, NoValue, Outcome
from penstock.learner.algorithms.loss_cells import KL, KeepAll, Uncorrected
from penstock.learner.algorithms.row import Algorithm

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEADS = ("row", "advantages", "objective", "correction", "KL", "values", "reduction", "groups")
SEE = "`penstock algorithms NAME` shows a row's equation, defaults, paper and traps."
PADDING = 2
"""Around every column."""
MOST_LINES = 3
"""A row that is broken into more of them reads like a column of words."""
NARROW = "What the cells of all rows are: in a wider terminal ({least} columns), or `penstock algorithms | cat`."


def cells(row: Algorithm) -> tuple[str, ...]:
    """What stands under HEADS."""
    advantages = [_short(row.baseline)] if not isinstance(row.baseline, NoBaseline) else []
    advantages += [_short(row.credit)] if not isinstance(row.credit, Outcome) else []
    advantages += [f"whitened over {row.whitening.over}"] if row.whitening.over != "none" else []
    objective = _short(row.objective) + (f" + entropy {row.entropy_coefficient:g}" if row.entropy_coefficient else "")
    correction = [_short(row.trust)] if not isinstance(row.trust, Uncorrected) else []
    correction += [_short(row.reject)] if not isinstance(row.reject, KeepAll) else []
    values = "–" if isinstance(row.value, NoValue) else row.value.kind
    groups = f"{row.group_filter}, quorum {row.quorum}"
    first = (row.name, ", ".join(advantages) or "the reward", objective, ", ".join(correction) or "–")
    return *first, _kl(row.kl), values, row.reduction.kind, groups


def show(rows: Sequence[Algorithm], console: Console) -> None:
    """The table where the terminal is wide enough to read it, otherwise what each row is; how to see more."""
    whole = [HEADS, *(cells(row) for row in rows)]
    least = _least_width(whole)
    fits = console.width >= least
    short = [(HEADS[0], "what it is"), *((row.name, row.summary) for row in rows)]
    console.print(_drawn(whole if fits else short, console.width))
    hints = [SEE] if fits else [SEE, NARROW.format(least=least)]
    console.print("\n" + "\n".join(hints).replace("`", ""), highlight=False, markup=False)


def _drawn(lines: Sequence[Sequence[str]], width: int) -> Table:
    """The first line as heads. Words stay whole: Rich itself makes wide columns narrower without looking at them."""
    from rich.table import Table

    drawn = Table(box=None, padding=(0, 1), header_style="bold")
    for place, (head, own) in enumerate(zip(lines[0], _widths(lines, width), strict=True)):
        drawn.add_column(head, style="" if place else "bold", width=own, overflow="fold")
    for line in lines[1:]:
        drawn.add_row(*line)
    return drawn


def _least_width(lines: Sequence[Sequence[str]]) -> int:
    """The fewest columns of a terminal in which no word is broken and no row takes more than MOST_LINES lines."""
    from textwrap import wrap

    def tallest(width: int) -> int:
        widths = _widths(lines, width)
        return max(len(wrap(text, own)) for line in lines for text, own in zip(line, widths, strict=True))

    width = sum(_longest_words(lines)) + PADDING * len(lines[0])
    while tallest(width) > MOST_LINES:
        width += 1
    return width


def _widths(lines: Sequence[Sequence[str]], width: int) -> list[int]:
    """Of the columns: the longest word of each, and of what is left over as much as it needs in proportion."""
    longest = _longest_words(lines)
    wanted = [max(map(len, column)) - least for column, least in zip(zip(*lines, strict=True), longest, strict=True)]
    spare = max(0, min(sum(wanted), width - sum(longest) - PADDING * len(longest)))
    return [least + spare * more // max(1, sum(wanted)) for least, more in zip(longest, wanted, strict=True)]


def _longest_words(lines: Sequence[Sequence[str]]) -> list[int]:
    """Column by column."""
    return [max(len(word) for text in column for word in text.split()) for column in zip(*lines, strict=True)]


def plain(rows: Sequence[Algorithm]) -> str:
    """For a pipe: a line per row, however wide."""
    lines = [HEADS, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown(rows: Sequence[Algorithm]) -> str:
    """For the docs: the table, then every row's equation, paper and traps."""
    lines = [_bar(HEADS), _bar(["---"] * len(HEADS))]
    lines += [_bar([f"`{row.name}`", *cells(row)[1:]]) for row in rows]
    for row in rows:
        lines += ["", f"### {row.name}", "", f"{_sentence(row.summary)} {_sentence(row.paper)}", ""]
        lines += [f"    {line}" for line in row.equation.splitlines()]
        lines += ["", *(f"- {trap}" for trap in row.traps)]
    return "\n".join(lines)


def detail(row: Algorithm, name: str) -> str:
    """Everything about one row, which a run file calls `name`."""
    parts = [
        f"{row.name}: {row.summary}",
        f"Paper\n{_indented(row.paper)}",
        *([f"Equation\n{_indented(row.equation)}"] if row.equation else []),
        *(["Traps\n" + "\n".join(_indented(trap, "  - ") for trap in row.traps)] if row.traps else []),
        f"Run file; all of this is the row's own, so leave out what you do not change\n{_indented(_yaml(row, name))}",
    ]
    return "\n\n".join(parts)


def _yaml(row: Algorithm, name: str) -> str:
    return "\n".join(["algorithm:", f"  name: {name}", *(f"  {key}: {value}" for key, value in _values(row))])


def _values(row: Algorithm) -> Iterator[tuple[str, str]]:
    """Cells as they would stand in a run file."""
    for key, cell in row.cells().items():
        yield key, _flow(cell.model_dump() if hasattr(cell, "model_dump") else cell)


def _flow(value: Any) -> str:
    """`value` as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(below)}" for key, below in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(cell: Any) -> str:
    """`ppo_clip clip_low 0.2 clip_high 0.28`; what is off, and what only guards a division, is left out."""
    values = {k: v for k, v in cell.model_dump().items() if k not in ("kind", "eps") and v not in (None, False)}
    return " ".join([cell.kind, *(f"{k} {v['kind'] if isinstance(v, dict) else _flow(v)}" for k, v in values.items())])


def _kl(cell: KL) -> str:
    """`k1 in the reward 0.05`; an adaptive controller where there is one."""
    beta = f" {cell.coefficient:g}" if cell.coefficient else ", off"
    controller = f", {_short(cell.controller)}" if cell.controller.kind != "fixed" else ""
    return f"{cell.estimator} in the {cell.placement}{beta}{controller}"


def _bar(line: Sequence[str]) -> str:
    return "| " + " | ".join(line) + " |"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _indented(text: str, first: str = "  ") -> str:
    import textwrap

    rest = " " * len(first)
    if "\n" in text or text.startswith("algorithm:"):
        return textwrap.indent(text, rest)
    return textwrap.fill(text, 100, initial_indent=first, subsequent_indent=rest)
