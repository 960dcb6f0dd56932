"""Makes docs/figures.md of what the benchmarks have kept: `python -m benchmarks.table`.

Every figure is a row: what it is, its goal, what was measured, whether the goal was met, when and on what. The numbers
come from `benchmarks/results/NAME.json`, the JSON lines that each benchmark prints (several are allowed), written there
by `--keep` or by whoever ran it. What a figure that misses its goal misses it by, and why, is said here, in `WHY`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring import RESULTS
from benchmarks.tables import table

PAGE = Path(__file__).parent.parent / "docs" / "figures.md"
Values = dict[str, Any]
TIMES = 20
"""The rate of a soak, over that of the demo."""
HALF_AN_HOUR = 30
"""Minutes without which a soak has shown nothing yet."""

WHY: dict[str, str] = json.loads((Path(__file__).parent / "explained.json").read_text())
"""By figure: what remains of one that misses its goal."""

HEAD = """# Figures

What Penstock costs over what it stands on, and what it takes, as its benchmarks measure it. Each is a command that
prints a JSON line; ratios compare sides that took turns in one run: medians, with quartiles in brackets. This page is
made from the lines that were kept, by `python -m benchmarks.table`. `load` is the machine's load average before and
after a measurement, most of which was other programs' on the machine that this was measured on: they took their part
of its two cores from both sides of a ratio.

"""


class Figure(NamedTuple):
    """One row."""

    name: str
    goal: str
    measured: str
    met: bool | None
    """None where there is no goal."""


def of(ratio: Values) -> str:
    """A median with its quartiles."""
    low, high = ratio["quartiles"]
    return f"{ratio['median']:.3g} [{low:.3g}, {high:.3g}]"


def store(line: Values) -> Iterator[Figure]:
    """The ledger over raw Redis, at every number of groups."""
    for count, each in line["stored"].items():
        speed = each["speed"]["ledger"]
        yield Figure(
            f"store: ledger over raw Redis, {int(count):,} groups stored",
            "≥ 0.7",
            f"{of(each['ratio'])}; {speed['groups_per_second']:,} groups/s, {speed['mb_per_second']:.0f} MB/s; with "
            f"the codec {of(each['ratio_with_codec'])}",
            each["ratio"]["median"] >= line["goal"],
        )
    yield Figure("store: most stored over least", "flat", f"{line['flat']:.2f}", line["flat"] >= 0.9)


def swap(line: Values) -> Iterator[Figure]:
    """Every model's pause."""
    for name, each in line["models"].items():
        milliseconds, large = each["milliseconds"], name == "large"
        yield Figure(
            f"swap: pause over the engine's bare reload, `keep`, {each['parameters'] / 1e6:.1f} million parameters",
            "≤ 1.2" if large else "",
            f"{of(each['keep_over_bare'])}; over a reload that takes effect {of(each['keep_over_repacked'])}; over a "
            f"copy of the bytes {of(each['keep_over_copy'])}; {milliseconds['keep.pause']['median']:.0f} ms",
            each["keep_over_bare"]["median"] <= line["goal"] if large else None,
        )
        yield Figure(f"swap: the same, `recompute`, {name}", "", of(each["recompute_over_bare"]), None)


def rollout(line: Values) -> Iterator[Figure]:
    """The worker's speed."""
    speed = line["tokens_per_second"]
    measured = (
        f"{of(line['ratio'])}; {speed['worker']['median']:,.0f} against {speed['bare']['median']:,.0f} tokens/s, "
        f"mean length {line['mean_length']['worker']:.0f}"
    )
    short = line.get("answers") == "short"
    per_second = speed["bare"]["median"] / line["mean_length"]["bare"]
    measured += f"; bare {per_second:,.0f} answers/s" if short else ""
    yield Figure(
        f"rollout: worker over bare vLLM{', short answers' if short else ''}",
        "" if short else "≥ 0.95",
        measured,
        line["met"],
    )


def learner(line: Values) -> Iterator[Figure]:
    """The step's speed, by shape."""
    for name, each in line["shapes"].items():
        speed = each["tokens_per_second"]
        measured = (
            f"{of(each['ratio'])}; {speed['step']['median']:,.0f} against {speed['bare']['median']:,.0f} tokens/s"
        )
        shape = f"{each['parameters'] / 1e6:.1f} million parameters, answers of {each['mean_answer']:.0f} tokens"
        yield Figure(
            f"learner: step over bare torch, {name} ({shape})",
            "≥ 0.95",
            measured,
            each["ratio"]["median"] >= line["goal"],
        )


def parity(line: Values) -> Iterator[Figure]:
    """By model."""
    each = "; ".join(
        f"{name} {one['largest']:.1e} over {one['tokens']:,} tokens" for name, one in line["models"].items()
    )
    yield Figure("parity: sampler against learner, float32, nats", "≤ 1e-4", each, line["met"])


def overhead(line: Values) -> Iterator[Figure]:
    """When nobody works, and the memory of the same run."""
    idle = ", ".join(f"{role} {100 * share:.0f} %" for role, share in line["idle"].items())
    measured = f"{100 * line['nobody']:.1f} % of {line['seconds']:.0f} s; idle: {idle}"
    yield Figure("overhead: of the demo's time nobody works", "≤ 5 %", measured, line["met"])
    if line["memory"]:
        peaks = ", ".join(f"{name} {size:,}" for name, size in sorted(line["memory"].items(), key=lambda p: -p[1]))
        measured = f"{line['memory_sum_gb']:.1f} GB, all peaks added up (MiB: {peaks})"
        yield Figure("memory: the demo", "≤ 12 GB", measured, line["memory_met"])


def recovery(line: Values) -> Iterator[Figure]:
    """By run and target."""
    for name, targets in line["runs"].items():
        killed = "; ".join(
            f"{target} {of(each['next_step'])} s" + (f" (resumed {each['resumed']} times)" if each["resumed"] else "")
            for target, each in targets.items()
            if isinstance(each, dict)
        )
        yield Figure(f"recovery: from a kill to the next trained step, {name}", "", killed, None)


def soak(line: Values) -> Iterator[Figure]:
    """What grew."""
    slopes = ", ".join(
        f"{name} {each['mib_per_hour']:+.1f} ± {each['twice_the_error']:.1f} of {each['mib']:.0f} MiB"
        for name, each in line["memory"].items()
    )
    measured = (
        f"{line['minutes']:g} min at {line['times_the_real_rate']:g} times the demo's rate, {line['groups']:,} groups; "
        f"MiB per hour: {slopes}; ledger {'balanced' if line['balanced'] else 'NOT balanced'}"
    )
    whole = line["minutes"] >= HALF_AN_HOUR and line["times_the_real_rate"] >= TIMES
    yield Figure(
        "soak: what grows",
        f"nothing, in 30 min at {TIMES} times the rate",
        measured,
        line["met"] if whole or not line["met"] else None,
    )


def peer(line: Values) -> Iterator[Figure]:
    """One task."""
    goal = f"≥ {line['goal']:g} times" if isinstance(line["goal"], int | float) else str(line["goal"])
    unit = "seconds to 0.90" if line["task"] == "short" else "trained tokens/s"
    ratio = line["ratio"]
    met = None if ratio is None or not isinstance(line["goal"], int | float) else ratio >= line["goal"]
    start, other = line["startup"]["penstock"], line["startup"]["trl"]
    measured = (
        f"{ratio if ratio is None else round(ratio, 2)}; {unit}: {line['penstock']:,.5g} against {line['trl']:,.5g}; "
        f"start-up, which does not count, {start:.0f} against {other:.0f} s"
    )
    yield Figure(f"peer: ahead of TRL, {line['task']} task", goal, measured, met)


def chaos(line: Values) -> Iterator[Figure]:
    """One of the two kinds of run."""
    kind = {"paced": "a drill", "vllm": "the carry recipe on the real engines"}[line["engine"]]
    took, goals = line["seconds_to_recover"], line["goals"]
    spread = f" in {took['median']:g} s, {took['max']:g} at most" if took else ""
    measured = (
        f"{line['violations']} in {line['kills']} kills; {line['recoveries']} got over{spread}; "
        f"{line['groups_redelivered']:,} groups redelivered"
    )
    measured += (
        f"; {goals['reached']} of {goals['judged']} goals reached in {line['runs']} runs" if goals["judged"] else ""
    )
    yield Figure(f"chaos: promises broken, {kind}", "0", measured, line["violations"] == 0 < line["kills"])


def watching(line: Values) -> Iterator[Figure]:
    """One run that was watched; one that was not is only for comparison."""
    if line["watched"]:
        measured = f"{line['share']:.2f} %; with all of Ray's agent {line['with_agent']:.2f} %"
        yield Figure(f"watching: CPU over the run's, {line['of']}", "≤ 2 %", measured, line["share"] <= line["goal"])


def page(line: Values) -> Iterator[Figure]:
    """One page."""
    measured = (
        f"first paint {line['first_paint']:.2f} s, cold {line['first_paint_cold']:.2f} s; update "
        f"{1e3 * line['update']:.0f} ms"
    )
    goal = f"≤ {line['paint_limit']:g} s, ≤ {1e3 * line['update_limit']:.0f} ms"
    yield Figure(f"page: at step {line['steps']:,}", goal, measured, line["met"])


def scale_up(line: Values) -> Iterator[Figure]:
    """Workers that joined."""
    yield Figure("scale up: a worker that joins over a bare engine", "≤ 1.3", f"{line['ratio']:.2f}", line["met"])


def scale_down(line: Values) -> Iterator[Figure]:
    """Workers that left."""
    measured = f"{line['thrown_away']} of {line['sampled']:,} tokens, {line['workers']} workers that left"
    yield Figure("scale down: tokens thrown away", "0", measured, line["met"])


def supervision(line: Values) -> Iterator[Figure]:
    """By part, flat over the number of workers or not."""
    for part, flat in line["flat"].items():
        costs = ", ".join(f"{workers}: {cost:g}" for workers, cost in line["us_per_group"][part].items())
        yield Figure(f"supervision: {part}, µs of CPU per group by workers", "flat", f"{costs} (× {flat:g})", None)


def autoscaler(line: Values) -> Iterator[Figure]:
    """Where it settled."""
    measured = "found the right number from one worker and from five" if line["met"] else "did not settle"
    yield Figure("autoscaler: the right number of workers", "found", measured, line["met"])


FIGURES: dict[str, Callable[[Values], Iterator[Figure]]] = {
    each.__name__: each
    for each in (
        *(store, swap, rollout, learner, parity, overhead, recovery, soak, peer, chaos),
        *(watching, page, scale_up, scale_down, supervision, autoscaler),
    )
}


def kept() -> dict[str, list[Values]]:
    """All lines by benchmark. Raises ValueError for one that is not known here."""
    found: dict[str, list[Values]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            if line["benchmark"] not in FIGURES:
                raise ValueError(f"{path}: no figure {line['benchmark']!r}; known are {', '.join(FIGURES)}")
            found.setdefault(line["benchmark"], []).append(line)
    return found


def rows(name: str, lines: list[Values]) -> Iterator[list[str]]:
    """Of one benchmark; without lines a row that says how to get them."""
    for line in lines:
        place = line.get("machine", {})
        when = str(line.get("date", ""))
        where = f"{place['cpus']} × {place['cpu']}, load {' → '.join(map(str, line['load']))}" if place else ""
        for figure in FIGURES[name](line):
            met = {True: "yes", False: "**no**", None: ""}[figure.met]
            yield [figure.name, figure.goal, figure.measured, met, when, where]
    if not lines:
        yield [f"{name}: not measured yet, `{COMMANDS.get(name, f'python -m benchmarks.{name}')}`", "", "", "", "", ""]


COMMANDS = {"scale_down": "python -m benchmarks.scale_up", "chaos": 'make chaos CHAOS_ARGS="--result"'}
"""What prints the lines where that is not the figure's own command."""


def page_text() -> str:
    """The whole page."""
    lines = kept()
    every = [row for name in FIGURES for row in rows(name, lines.get(name, []))]
    text = HEAD + table(["figure", "goal", "measured", "met", "date", "machine"], every)
    explained = [f"- **{name}**: {WHY[name]}\n" for name in FIGURES if name in WHY]
    if explained:
        text += "\n## What remains\n\n" + "".join(explained)
    their = dict.fromkeys(COMMANDS.get(name, f"python -m benchmarks.{name}") for name in FIGURES)
    commands = "".join(f"    {command}\n" for command in their)
    about = (
        "Each says what it does with `--help`, and what its line holds; the chaos run is [a page](chaos.md) of its own."
    )
    return f"{text}\n## The commands\n\n{about}\n\n{commands}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page_text())
    print(PAGE)


if __name__ == "__main__":
    main()
