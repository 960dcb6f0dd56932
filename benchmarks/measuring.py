"""What the figures share: sides that take turns, medians with their spread, the machine, and where a line is kept."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
"""A file per figure with its last lines, from which `benchmarks.table` makes docs/figures.md."""


def in_turns(rounds: int, warm: int = 1, **sides: Callable[[], float]) -> dict[str, list[float]]:
    """What each side gave in every round. The sides take turns, and every second round begins with the last, so that a
    slow minute of the machine meets all of them; the first `warm` rounds are not counted."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm + rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            value = sides[name]()
            if number >= warm:
                found[name].append(value)
    return found


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median and quartiles, and of how many."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {
        "median": round(middle, digits),
        "quartiles": [round(low, digits), round(high, digits)],  # type: ignore[dict-item]
        "times": len(values),
    }


def ratios(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the rounds' ratios: each divides what was measured side by side."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


class Stopwatch:
    """Wall-clock seconds from birth on, and those of this process's CPU: what a side that only computes, in one thread,
    would take on a machine of its own."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """(wall, CPU)."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def machine() -> dict[str, Any]:
    """What the figure was measured on."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpus": os.cpu_count(),
        "cpu": model or platform.processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
    }


class Line:
    """One figure's line: what was measured, and where and when. `load` is the machine's over the last minute, at the
    beginning and at the end: what else ran shows in it."""

    def __init__(self, benchmark: str, **facts: Any) -> None:
        self._values: dict[str, Any] = {
            "benchmark": benchmark,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "machine": machine(),
            "load": [round(os.getloadavg()[0], 1)],
            **facts,
        }

    def end(self, values: Mapping[str, Any], keep: bool, part: str = "") -> dict[str, Any]:
        """Print it, and `keep` it for the table, in a file of its own for each `part`. Returns it."""
        self._values["load"].append(round(os.getloadavg()[0], 1))
        self._values |= values
        print(json.dumps(self._values), flush=True)
        if keep:
            RESULTS.mkdir(exist_ok=True)
            name = "-".join(filter(None, (self._values["benchmark"], part)))
            (RESULTS / f"{name}.json").write_text(json.dumps(self._values) + "\n")
        return self._values


def parser(about: str | None) -> argparse.ArgumentParser:
    """With what every figure's command has: `--keep`."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--keep", action="store_true", help=f"write the line into {RESULTS.name}/, too")
    return made
